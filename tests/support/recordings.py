"""The recorded exchanges of real engines in `tests/golden/engines`, read as the bytes they were.

A small HTTP reader of its own: the recordings end with the connection, and some have their middle cut out.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "engines"
_MARK = re.compile(rb"\r?\n?<<recorder:[^>]*>>")
_CHUNK = re.compile(rb"\r\n(?=[0-9a-f]+\r\n)")


class Exchange(msgspec.Struct, frozen=True):
    """One request and its answer; `body` is the answer's body without chunk framing, header names are lower case."""

    name: str
    method: str
    path: str
    request_body: bytes
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def exchange(folder: str, case: str) -> Exchange:
    """The recording `folder/case`."""
    base = GOLDEN / folder / case
    request_head, request_body = _head(base.with_name(case + ".request.http").read_bytes())
    method, path = request_head[0].split(b" ")[:2]
    head, raw = _head(base.with_name(case + ".response.http").read_bytes())
    headers = dict(_header(line) for line in head[1:])
    chunked = headers.get(b"transfer-encoding") == b"chunked"
    return Exchange(
        f"{folder}/{case}",
        method.decode(),
        path.decode(),
        request_body,
        int(head[0].split(b" ")[1]),
        headers,
        _unchunked(raw) if chunked else raw,
    )


def cases(folder: str) -> list[str]:
    """The names of all recordings in `folder`, not in folders below it."""
    return sorted(path.name.removesuffix(".response.http") for path in (GOLDEN / folder).glob("*.response.http"))


def _head(data: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()


def _unchunked(data: bytes) -> bytes:
    mark = _MARK.search(data)
    if mark is None:
        return _chunks(data)
    rest = data[mark.end() :]
    begin = _CHUNK.search(rest)
    assert begin is not None
    return _chunks(data[: mark.start()]) + _chunks(rest[begin.end() :])


def _chunks(data: bytes) -> bytes:
    """The whole chunks at the beginning of `data`."""
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0 or len(rest) < length:
            break
        body += rest[:length]
        data = rest[length + 2 :]
    return body
