"""The path of a pass-through request: nothing accepted leaves the engine's base, whoever reads it next and however."""

from __future__ import annotations

import posixpath
import unicodedata
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from flm.policy.paths import decoded, normalised, query, split

BASE = "http://127.0.0.1:1/base"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"", "/"),
        (b"/", "/"),
        (b"/props", "/props"),
        (b"/v1/models/", "/v1/models/"),
        (b"/api/show", "/api/show"),
        (b"/%61pi/%74ags", "/api/tags"),  # an escape that is not needed is taken out
        (b"/v1/models/a%20b", "/v1/models/a%20b"),
        (b"/v1/models/qwen3%3A8b", "/v1/models/qwen3:8b"),
        (b"/v1/models/qwen3:8b", "/v1/models/qwen3:8b"),
        (b"/v1/models/org%2Fname", "/v1/models/org%2Fname"),
        (b"/v1/models/org%2fname", "/v1/models/org%2Fname"),
        (b"/v1/models/org/name", "/v1/models/org/name"),
        (b"/v1/models/caf%C3%A9", "/v1/models/caf%C3%A9"),
        (b"/a.b/..c/d..", "/a.b/..c/d.."),
        (b"/x/...", "/x/..."),
        (b"/a+b/~c/@d/$e&f=g,h(i)*!'", "/a+b/~c/@d/$e&f=g,h(i)*!'"),
    ],
)
def test_what_is_accepted(raw: bytes, path: str) -> None:
    assert normalised(raw) == path


@pytest.mark.parametrize(
    "raw",
    [
        b"/../x", b"/x/..", b"/..", b"/.", b"/./x", b"/x/.", b"/x/./y", b"/x/../../y", b"/%2e%2e/x", b"/%2e%2e%2fx",
        b"/.%2e/x", b"/%2E%2E", b"/%2e", b"/x/%2e%2e", b"/x%2f..%2f..%2fy", b"/x/%2f..", b"/..%2fx", b"/..%5cx",
        b"/%252e%252e/x", b"/%252e", b"/x%25", b"/%25%32%65", b"/%c0%ae%c0%ae/x", b"/%e0%80%ae", b"/%c0%af", b"/%ff",
        b"/x\\y", b"/%5c", b"/x%5c..%5cy", b"//evil/", b"/x//y", b"//", b"/x//", b"/%2fevil", b"/x%2f", b"/x%2f%2fy",
        b"http://evil/", b"/http://evil/", b"evil", b"/x%00", b"/%0d%0ax", b"/x%0a", b"/x%7f", b"/x%1b[0m", b"/x#y",
        b"/x%23y", b"/x;y", b"/x%3By", b"/..;/x", b"/x%3Fy", b"/x?y", b"/%zz", b"/%", b"/%2", b"/x y", b"/x\x00",
        b"/\xff", b"/\xc3\xa9", b"/x\ty", b"/%ED%A0%80", b"/%e2%80%ae", b"/%e2%80%8b", b"/%c2%85", b'/"', b"/<x>",
        b"/%20..", b"/..%20", b"/.%20", b"/%EF%BC%8E%EF%BC%8E/x", b"/%EF%BC%8E%EF%BC%8E%EF%BC%8Fx",
        b"/%E2%80%A5/x", b"/%E2%80%A4%E2%80%A4/x", b"/x%EF%BC%8F%EF%BC%8Fy", b"/%EF%BC%85", b"/%EF%BC%BC", b"/x^y",
        b"/x|y", b"/{x}", b"/`",
    ],
)  # fmt: skip
def test_what_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        normalised(raw)
    assert refused.value.kind is ErrorKind.INVALID_REQUEST
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


# Pieces that attacks are made of, among others: chance alone would seldom put two together.
_PIECES = st.sampled_from(
    [b"/", b"//", b".", b"..", b"%2e", b"%2E%2e", b"%252e", b"%2f", b"%2F", b"%5c", b"\\", b"%00", b"%0d%0a", b";",
     b"#", b"?", b"%3f", b"%c0%ae", b"%c3%a9", b"%ef%bc%8e", b"%ef%bc%8f", b"a", b"B", b"%20", b"%3A", b":", b"@",
     b"http:", b"%", b"%25", b"%E2%80%A5"]
)  # fmt: skip
_RAW = st.one_of(st.binary(), st.lists(_PIECES).map(b"".join)).map(lambda rest: b"/" + rest)


def _readings(path: str) -> set[str]:
    """What servers make of a path: as it is, decoded once and twice, folded, with the other slash."""
    once = unquote_to_bytes(path).decode()
    readings = {path, once, unquote(once)}
    readings |= {unicodedata.normalize("NFKC", reading) for reading in readings}
    return readings | {reading.replace("\\", "/") for reading in readings} | {r.partition(";")[0] for r in readings}


@given(_RAW)
@example(b"/%2f..%2f..")
@example(b"/a/%EF%BC%8E%EF%BC%8E")
def test_whatever_is_accepted_stays_below_the_base(raw: bytes) -> None:
    try:
        path = normalised(raw)
    except RequestError:
        return
    assert path.startswith("/")
    assert path.isascii()
    assert normalised(path.encode()) == path  # once is enough
    assert unquote_to_bytes(path) == unquote_to_bytes(raw)  # and it means what was asked
    for reading in _readings(path):
        where = urlsplit(BASE + reading.replace("?", "%3F"))
        assert where.netloc == "127.0.0.1:1"
        assert urlsplit(urljoin(BASE + "/", BASE + path)).path == "/base" + path
        clean = posixpath.normpath(where.path)
        assert clean == "/base" or clean.startswith("/base/")
        assert clean == where.path.rstrip("/")
        assert not set(reading) & set("\r\n\0\\;?#")


@given(_RAW)
def test_decoded_is_what_was_asked(raw: bytes) -> None:
    try:
        path = normalised(raw)
    except RequestError:
        return
    assert decoded(path).encode() == unquote_to_bytes(raw)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (b"/engine/e/x/y", ("e", b"/x/y")),
        (b"/engine/e", ("e", b"")),
        (b"/engine/e/", ("e", b"/")),
        (b"/engine//x", ("", b"/x")),
        (b"/engine/%65/x", ("%65", b"/x")),  # never decoded: an id needs no escape
        (b"/engine/../x", ("..", b"/x")),
        (b"/engine/\xff/x", ("\xff", b"/x")),
    ],
)
def test_the_engine_is_the_first_segment_as_it_was_sent(path: bytes, parts: tuple[str, bytes]) -> None:
    assert split(path) == parts


@pytest.mark.parametrize(
    "raw", [b"a=b&c=%0D%0A%00", b"/../", b"?", b"a;b", b"%zz", b"a=%7B%22x%22%3A1%7D", b"[]{}|\\^`"]
)
def test_a_query_passes_as_it_is(raw: bytes) -> None:
    assert query(raw) == "?" + raw.decode()


def test_no_query_is_none() -> None:
    assert query(b"") == ""


@pytest.mark.parametrize("raw", [b"a\r\nb", b"a b", b"\x00", b"\x7f", b"a\tb", b"\xc3\xa9", b"a#b", b"\n"])
def test_a_query_that_could_break_out_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        query(raw)
    assert refused.value.kind is ErrorKind.INVALID_REQUEST
