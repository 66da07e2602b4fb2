"""The plain port's answers, without sockets: whole, byte by byte, cut anywhere, and to whatever strangers send."""

from __future__ import annotations

import itertools
import re
from urllib.parse import urlsplit

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm.tls.plain import LONGEST_HEAD, PlainConnection, Site

NOW = 1_795_000_000.0
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"
KEYED = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
NAMES = ("flm.example.com", "www.example.com", "192.0.2.7", "2001:db8::7")
PORT = 8443
HEAD = f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: flm.example.com\r\n\r\n".encode()


def site(**changes: object) -> Site:
    return Site(**({"names": NAMES, "https_port": PORT, "tokens": {TOKEN: KEYED}} | changes))  # type: ignore[arg-type]


class Read:
    """An answer as an HTTP client reads it."""

    def __init__(self, raw: bytes, method: str = "GET") -> None:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(raw)
        client.receive_data(b"")
        response = client.next_event()
        assert isinstance(response, h11.Response), raw
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}
        assert len(self.headers) == len(response.headers.raw_items())  # no field twice
        self.body = b""
        while isinstance(event := client.next_event(), h11.Data):
            self.body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        assert client.trailing_data[0] == b""  # and nothing behind it
        assert self.headers["connection"] == "close"
        assert self.headers["cache-control"] == "no-store"
        assert self.headers["date"] == "Wed, 18 Nov 2026 11:06:40 GMT"
        assert "strict-transport-security" not in self.headers


def answer(request: bytes, to: Site | None = None, method: str = "GET") -> Read:
    raw = PlainConnection(to or site()).feed(request, NOW)
    assert raw is not None
    return Read(raw, method)


def ask(target: str, host: str | None = "flm.example.com", method: str = "GET", to: Site | None = None) -> Read:
    line = "" if host is None else f"Host: {host}\r\n"
    version = "1.0" if host is None else "1.1"
    return answer(f"{method} {target} HTTP/{version}\r\n{line}\r\n".encode("latin-1"), to, method)


class TestChallenges:
    def test_the_answer_is_the_token_s_and_nothing_else(self) -> None:
        read = answer(HEAD)
        assert (read.status, read.body) == (200, KEYED.encode())
        assert read.headers["content-type"] == "application/octet-stream"
        assert "location" not in read.headers

    @pytest.mark.parametrize("host", [None, "", "other.example.com", "192.0.2.1", "flm.example.com:80", "[::1]"])
    def test_whoever_is_asked_for(self, host: str | None) -> None:
        assert ask(f"/.well-known/acme-challenge/{TOKEN}", host).body == KEYED.encode()

    @pytest.mark.parametrize("prefix", ["http://flm.example.com", "HTTP://other:80", "https://x"])
    def test_in_absolute_form(self, prefix: str) -> None:
        assert ask(f"{prefix}/.well-known/acme-challenge/{TOKEN}").body == KEYED.encode()

    def test_head_has_everything_but_the_body(self) -> None:
        read = ask(f"/.well-known/acme-challenge/{TOKEN}", method="HEAD")
        assert (read.status, read.body) == (200, b"")
        assert read.headers["content-length"] == str(len(KEYED))

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
    def test_other_methods(self, method: str) -> None:
        read = ask(f"/.well-known/acme-challenge/{TOKEN}", method=method)
        assert (read.status, read.headers["allow"]) == (405, "GET, HEAD")

    @pytest.mark.parametrize(
        "odd",
        [
            "",
            "unknown",
            TOKEN[:-1],
            TOKEN + "x",
            TOKEN.lower(),
            TOKEN + "/",
            TOKEN + ".",
            "%65" + TOKEN[1:],
            TOKEN + "%00",
            "../acme-challenge/" + TOKEN,
            "./" + TOKEN,
            TOKEN + ";x",
            "a" * 3000,
        ],
    )
    def test_a_token_that_is_not_open_leads_nowhere(self, odd: str) -> None:
        read = ask(f"/.well-known/acme-challenge/{odd}")
        assert read.status == 404
        assert KEYED.encode() not in read.body
        assert "location" not in read.headers

    def test_a_token_outside_the_alphabet_is_not_even_looked_up(self) -> None:
        assert ask("/.well-known/acme-challenge/a.b", to=site(tokens={"a.b": "c", "": "d"})).status == 404
        assert ask("/.well-known/acme-challenge/", to=site(tokens={"": "d"})).status == 404

    def test_tokens_come_and_go_while_a_connection_is_open(self) -> None:
        where = site()
        before, after = PlainConnection(where), PlainConnection(where)
        assert before.feed(HEAD[:-1], NOW) is None
        assert after.feed(HEAD[:-1], NOW) is None
        assert Read(before.feed(HEAD[-1:], NOW) or b"").status == 200
        del where.tokens[TOKEN]
        assert Read(after.feed(HEAD[-1:], NOW) or b"").status == 404


class TestRedirects:
    @pytest.mark.parametrize(
        ("host", "origin"),
        [
            ("flm.example.com", "https://flm.example.com:8443"),
            ("FLM.Example.com.", "https://flm.example.com:8443"),
            ("flm.example.com:80", "https://flm.example.com:8443"),
            ("www.example.com:8080", "https://www.example.com:8443"),
            ("192.0.2.7", "https://192.0.2.7:8443"),
            ("[2001:db8::7]:80", "https://[2001:db8::7]:8443"),
            ("[2001:DB8:0::7]", "https://[2001:db8::7]:8443"),
            ("2001:db8::7", "https://[2001:db8::7]:8443"),
            ("", "https://flm.example.com:8443"),
            (None, "https://flm.example.com:8443"),
            ("evil.example", "https://flm.example.com:8443"),
            ("flm.example.com.evil.example", "https://flm.example.com:8443"),
            ("flm.example.com@evil.example", "https://flm.example.com:8443"),
            ("evil.example/flm.example.com", "https://flm.example.com:8443"),
            ("192.0.2.8", "https://flm.example.com:8443"),
            ("[::ffff:192.0.2.7]", "https://flm.example.com:8443"),
            ("[]", "https://flm.example.com:8443"),
            ("::::", "https://flm.example.com:8443"),
            ("\xe9\x01", "https://flm.example.com:8443"),
        ],
    )
    def test_to_the_host_that_was_asked_for_if_it_is_ours(self, host: str | None, origin: str) -> None:
        read = ask("/v1/models?x=%20&y", host)
        assert (read.status, read.headers["location"]) == (308, origin + "/v1/models?x=%20&y")
        assert read.body == f"This is served over HTTPS: {origin}\n".encode()
        assert read.headers["content-type"] == "text/plain; charset=utf-8"

    def test_the_usual_port_is_left_out(self) -> None:
        assert ask("/", to=site(https_port=443)).headers["location"] == "https://flm.example.com/"
        assert ask("/", "[2001:db8::7]", to=site(https_port=443)).headers["location"] == "https://[2001:db8::7]/"

    @pytest.mark.parametrize(
        ("target", "path"),
        [
            ("http://www.example.com/a?b", "https://www.example.com:8443/a?b"),
            ("http://www.example.com", "https://www.example.com:8443/"),
            ("HTTPS://www.example.com:80?b", "https://www.example.com:8443/?b"),
            ("http://www.example.com#a", "https://www.example.com:8443/"),
            ("http://evil.example/a", "https://flm.example.com:8443/a"),
            ("http://u:p@www.example.com/", "https://flm.example.com:8443/"),
            ("http:///a", "https://flm.example.com:8443/a"),
        ],
    )
    def test_of_an_absolute_target_the_host_field_says_nothing(self, target: str, path: str) -> None:
        assert ask(target, "flm.example.com").headers["location"] == path

    @pytest.mark.parametrize(
        "target",
        ["//evil.example/", "/\\evil.example", "/@evil.example", "/.well-known/acme-challenge", "/a//b/../c", "/#x"],
    )
    def test_a_path_stays_a_path(self, target: str) -> None:
        assert ask(target).headers["location"] == "https://flm.example.com:8443" + target

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
    def test_whatever_the_method(self, method: str) -> None:
        """308 and not 301: a POST stays one."""
        assert ask("/v1/chat/completions", method=method).status == 308

    def test_head_has_everything_but_the_body(self) -> None:
        read = ask("/", method="HEAD")
        assert (read.status, read.body) == (308, b"")
        assert int(read.headers["content-length"]) > 0

    @pytest.mark.parametrize("framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
    def test_the_answer_does_not_wait_for_a_body(self, framing: str) -> None:
        head = f"POST /v1/x HTTP/1.1\r\nHost: www.example.com\r\nExpect: 100-continue\r\n{framing}\r\n\r\n".encode()
        for request in (head, head + b"5\r\nhello"):
            read = answer(request, method="POST")
            assert (read.status, read.headers["location"]) == (308, "https://www.example.com:8443/v1/x")

    def test_the_longest_path_comes_back_whole(self) -> None:
        frame = len("GET / HTTP/1.0\r\n\r\n")
        path = "/" + "x" * (LONGEST_HEAD - frame)
        assert ask(path, None).headers["location"] == "https://flm.example.com:8443" + path
        assert ask(path + "x", None).status == 431


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (b"GET /\r\n\r\n", 400),  # HTTP/0.9
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            (b"GET example.com HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"CONNECT example.com:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET ftp://example.com/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
            (b"x" * LONGEST_HEAD, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * LONGEST_HEAD, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * LONGEST_HEAD + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 1000, 431),
        ],
    )
    def test_what_is_no_request_of_this_port(self, request_: bytes, status: int) -> None:
        read = answer(request_)
        assert read.status == status
        assert "location" not in read.headers
        assert read.headers["content-type"].startswith("text/plain")

    def test_the_words_are_never_the_client_s(self) -> None:
        assert b"secret" not in answer(b"GET / HTTP/1.1\r\nsecret secret\r\n\r\n").body


def fed(pieces: list[bytes], to: Site) -> tuple[bytes | None, int]:
    """(the answer, after how many bytes) to what comes in pieces; after it nothing more is said."""
    connection, came, said = PlainConnection(to), 0, None
    for piece in pieces:
        more = connection.feed(piece, NOW)
        assert more is None or (said is None and connection.answered)
        if said is None:
            came += len(piece)
        said = said or more
    return said, came


def one_by_one(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


@pytest.mark.parametrize(
    "request_",
    [
        HEAD,
        HEAD.replace(b"GET", b"HEAD"),
        b"GET /a HTTP/1.0\r\n\r\n",
        b"POST /a HTTP/1.1\nHost: [::1]\nContent-Length: 9\n\n",
        b"GET http://x/a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_byte_by_byte_and_with_more_behind(request_: bytes) -> None:
    whole, _ = fed([request_], site())
    assert whole is not None
    assert fed(one_by_one(request_), site()) == (whole, len(request_))
    assert fed([request_ + HEAD], site())[0] == whole
    assert fed(one_by_one(request_ + b"body" + HEAD), site()) == (whole, len(request_))
    for length in range(len(request_)):  # a head that is not whole is not answered
        assert fed([request_[:length]], site())[0] in (None, whole)


def test_what_is_read_of_a_head_without_end_is_bounded() -> None:
    said, came = fed(one_by_one(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000), site())
    assert said is not None
    assert Read(said).status == 431
    assert came == LONGEST_HEAD


def check(said: bytes) -> None:
    """Whatever was asked: one answer of HTTP, which leads nowhere but to a host of ours."""
    head, _, _ = said.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert re.fullmatch(r"HTTP/1\.1 (200|308|400|404|405|431|501|505) [A-Za-z ]+", lines[0])
    assert all(re.fullmatch(r"[A-Za-z-]+: [\x20-\x7e]+", line) for line in lines[1:]), lines
    names = [line.partition(":")[0].lower() for line in lines[1:]]
    assert len(names) == len(set(names))
    assert set(names) <= {
        "date",
        "content-type",
        "content-length",
        "cache-control",
        "connection",
        "allow",
        "location",
    }
    assert ("location" in names) == lines[0].startswith("HTTP/1.1 308")
    for line in lines[1:]:
        if line.startswith("location: "):
            location = line.removeprefix("location: ")
            assert re.match(
                r"https://(flm\.example\.com|www\.example\.com|192\.0\.2\.7|\[2001:db8::7\]):8443/", location
            )
            assert len(location) <= LONGEST_HEAD + 40
            parts = urlsplit(location)
            assert (parts.hostname in NAMES, parts.port, parts.username) == (True, PORT, None)


hosts = st.one_of(st.sampled_from([*NAMES, "evil.example", "[2001:db8::7]:80", "a@b", "a\rb", "a\nx: y"]), st.text())
targets = st.one_of(
    st.sampled_from(["/", "*", "//evil.example", "http://evil.example/x", "https:\\\\evil", f"/.well-known/{TOKEN}"]),
    st.text().map(lambda text: "/" + text),
    st.text().map(lambda text: "/.well-known/acme-challenge/" + text),
    st.text().map(lambda text: "http://" + text),
    st.text(),
)


@given(method=st.sampled_from(["GET", "HEAD", "POST", "TRACE", "CONNECT"]), target=targets, host=hosts)
@example(method="GET", target="/\r\nlocation: https://evil.example/", host="a")
@example(method="GET", target="/%0d%0alocation:%20https://evil.example/", host="a")
@example(method="GET", target="/", host="a\r\nlocation: https://evil.example/")
@example(method="GET", target="http://flm.example.com\\@evil.example/", host="a")
@example(method="GET", target="/\x0b\x85\u2028", host="flm.example.com")
def test_a_location_holds_no_line_break_and_no_host_of_others(method: str, target: str, host: str) -> None:
    request = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("utf-8", "surrogatepass")
    said = PlainConnection(site()).feed(request[:LONGEST_HEAD], NOW)
    if said is not None:
        check(said)


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from([HEAD, b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: a", b": ", b"\x00",
                                  b"Transfer-Encoding: chunked", b"Content-Length: 5", b"\x16\x03\x01", b" ", b"\xff",
                                  b"x" * 4090])).map(b"".join),
        st.tuples(st.integers(0, len(HEAD) - 1), st.binary(max_size=3)).map(
            lambda change: HEAD[: change[0]] + change[1] + HEAD[change[0] + 1 :]
        ),
    ),
    cuts=st.lists(st.integers(0, 5000), max_size=8),
)  # fmt: skip
def test_anything_in_any_pieces_is_answered_alike_or_waited_for(data: bytes, cuts: list[int]) -> None:
    whole, _ = fed([data], site())
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    in_pieces, _ = fed(pieces, site())
    if whole is None:
        assert in_pieces is None
    else:
        check(whole)
        assert in_pieces is not None
        check(in_pieces)


@pytest.mark.parametrize("position", range(len(HEAD)))
def test_each_byte_of_a_head_replaced_by_each_other(position: int) -> None:
    for value in range(256):
        said, _ = fed([HEAD[:position] + bytes([value]) + HEAD[position + 1 :]], site())
        if said is not None:
            check(said)
