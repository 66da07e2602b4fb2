"""The path of a pass-through request: checked as it was sent and after one decode, then written anew in one form only.

What leaves here is below the engine's base whatever reads it next: an engine that decodes it once, twice, not at all,
folds case or takes backslashes for slashes finds the same segments. So what is ambiguous is refused, not repaired:
dot segments, empty segments, a percent sign that is still there after one decode, backslashes, `;`, `?` and `#`,
control characters, bytes that are not UTF-8, characters that some readers fold into one of those.

An encoded slash (`%2F`) may stand inside a segment, as it does in the names of models; it stays encoded, and both of
its readings must be harmless. One slash at the end is kept.

Does not know engines, nor which routes are open (see `closing`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NoReturn
from urllib.parse import quote, unquote_to_bytes

from flm.errors import ErrorKind, RequestError

PREFIX: Final = b"/engine/"
_raw = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]|%[0-9A-Fa-f]{2})*").fullmatch  # RFC 3986 §3.3, without `;`
_query = re.compile(rb"[\x21\x22\x24-\x7e]*").fullmatch  # printable ASCII without blank and `#`
_PLAIN: Final = "!$&'()*+,=:@"  # besides letters, digits and `-._~`: legal in a segment, left as they are
_FORBIDDEN: Final = frozenset("%\\;?#")
_DOTS: Final = frozenset({".", ".."})
_SHOWN: Final = 80  # characters of a path that an error repeats


def split(path: bytes) -> tuple[str, bytes]:
    """(engine id, the rest) of a path that begins with PREFIX, as sent; the rest is empty or begins with `/`."""
    engine_id, slash, rest = path[len(PREFIX) :].partition(b"/")
    return engine_id.decode("latin-1"), slash + rest


def normalised(raw: bytes) -> str:
    """`raw` (empty, or beginning with `/`) in the form in which it goes to the engine; empty becomes `/`.

    Percent-encoding is decoded once and written again only where it must be. Raises RequestError INVALID_REQUEST.
    """
    if raw and not raw.startswith(b"/"):
        _refuse(raw, "it does not begin with `/`")
    if not _raw(raw):
        _refuse(raw, "it holds characters that a path may not hold, or a broken percent-encoding")
    segments = raw.split(b"/")[1:] or [b""]
    last = len(segments) - 1
    return "/" + "/".join(_segment(raw, segment, is_last=index == last) for index, segment in enumerate(segments))


def _segment(raw: bytes, segment: bytes, *, is_last: bool) -> str:
    if not segment:
        if not is_last:
            _refuse(raw, "it has an empty segment (`//`)")
        return ""
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        _refuse(raw, "it is not UTF-8 when decoded")
    for reading in {text, unicodedata.normalize("NFKC", text)}:
        _check(raw, reading)
    return quote(text, safe=_PLAIN)


def _check(raw: bytes, text: str) -> None:
    if not text.isprintable():
        _refuse(raw, "it holds control or invisible characters")
    if not _FORBIDDEN.isdisjoint(text):
        _refuse(raw, "it holds `%`, `\\`, `;`, `?` or `#` when decoded")
    pieces = text.split("/")
    if not all(pieces):
        _refuse(raw, "it has an empty segment (`//`) when decoded")
    if not _DOTS.isdisjoint(piece.strip(" ") for piece in pieces):
        _refuse(raw, "it has a segment `.` or `..`")


def _refuse(raw: bytes, reason: str) -> NoReturn:
    shown = raw[:_SHOWN].decode("latin-1")
    message = f"the path {shown!r} is not passed on to an engine: {reason}"
    raise RequestError(ErrorKind.INVALID_REQUEST, message)


def query(raw: bytes) -> str:
    """`raw`, the query as it was sent, with its `?`; empty if there is none. It is passed on unchanged.

    Raises RequestError INVALID_REQUEST for control characters, blanks, `#` and bytes outside ASCII.
    """
    if not _query(raw):
        message = "the query holds control characters, blanks or `#`: percent-encode them"
        raise RequestError(ErrorKind.INVALID_REQUEST, message)
    return f"?{raw.decode('ascii')}" if raw else ""


def decoded(path: str) -> str:
    """A normalised path as an engine reads it: the encoded slash counts as one."""
    return unquote_to_bytes(path).decode()
