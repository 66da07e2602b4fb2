"""A sealed file: bytes that nobody can read, change or cut short without the secret they were sealed with.

    78 bytes of head, big-endian:
      magic 12 | format u16 | kind of secret u8 | log2 N u8 | r u8 | p u8 | chunk bytes u32 | salt 16 | length u64
      | HMAC-SHA-256 of the 46 bytes before 32
    then the content in chunks, the last one shorter: ChaCha20-Poly1305 (RFC 8439) of each, 16 bytes longer for its tag

Strategy: scrypt (RFC 7914) makes 64 bytes of the secret and a fresh salt: a key for the chunks and one for the head.
The head's code tells a wrong secret from damage. A chunk's nonce is its number and whether it is the last (the STREAM
construction), its associated data the whole head, so that no chunk can be changed, moved, repeated or left out. One
chunk is in memory at a time. scrypt and not Argon2id, since every OpenSSL that `cryptography` may be built on has it.

Knows nothing of what is sealed. Blocking.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from flm.errors import CommandCode, CommandError

MAGIC: Final = b"\x89FLMBAK\r\n\x1a\n\x00"  # as PNG's: a transfer that changes line ends or the eighth bit breaks it
FORMAT: Final = 1
LOG_N: Final = 17  # 128 MiB and about half a second for each guess, as OWASP's password storage sheet wants
BLOCK: Final = 8
LANES: Final = 1
CHUNK_BYTES: Final = 65_536
_SALT_BYTES: Final = 16
_TAG_BYTES: Final = 16
_FIELDS: Final = struct.Struct(f">12sHBBBBI{_SALT_BYTES}sQ")
_MAC_BYTES: Final = 32
HEAD_BYTES: Final = _FIELDS.size + _MAC_BYTES
# What a head may ask of the machine that reads it, before it is known to be genuine: 256 MiB and a few seconds.
_LOG_N_RANGE: Final = range(10, 19)
_LANES_RANGE: Final = range(1, 5)
_CHUNK_RANGE: Final = range(1024, 1_048_577)

Kind = Literal["passphrase", "key file"]
_KINDS: Final[dict[Kind, int]] = {"passphrase": 1, "key file": 2}


class Secret(msgspec.Struct, frozen=True):
    """What a file is sealed with: the bytes of a passphrase (UTF-8) or of a key file."""

    kind: Kind
    value: bytes

    def __repr__(self) -> str:  # the default would print it
        return f"Secret(kind={self.kind!r})"


class Head(msgspec.Struct, frozen=True):
    """The head of a sealed file that was read, and not yet shown to be genuine. `raw`: all of its bytes."""

    kind: Kind
    log_n: int
    block: int
    lanes: int
    chunk_bytes: int
    salt: bytes
    length: int
    raw: bytes

    @property
    def sealed_bytes(self) -> int:
        """How long the whole file has to be."""
        return HEAD_BYTES + self.length + _TAG_BYTES * -(-self.length // self.chunk_bytes)


def seal(target: BinaryIO, content: Iterable[bytes], length: int, secret: Secret) -> None:
    """Write `content`, which has `length` bytes, at least one. Raises OSError."""
    fields = (_KINDS[secret.kind], LOG_N, BLOCK, LANES, CHUNK_BYTES, os.urandom(_SALT_BYTES), length)
    packed = _FIELDS.pack(MAGIC, FORMAT, *fields)
    head = Head(secret.kind, *fields[1:], raw=packed)
    key, head_key = _keys(head, secret)
    raw = packed + hmac.digest(head_key, packed, hashlib.sha256)
    cipher = ChaCha20Poly1305(key)
    target.write(raw)
    written = 0
    for number, chunk in enumerate(_chunked(content, CHUNK_BYTES)):
        written += len(chunk)
        target.write(cipher.encrypt(_nonce(number, last=written == length), chunk, raw))
    if written != length:
        raise AssertionError(f"{written} bytes of content instead of {length}")


def read_head(file: BinaryIO, name: str) -> Head:
    """The head of a sealed file. Raises BACKUP_INVALID for anything else; `name` is what to call the file."""
    raw = _read(file, HEAD_BYTES)
    if not raw:
        raise invalid(name, "it is empty")
    if raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise invalid(name, "it is no backup of FLM's")
    if len(raw) >= len(MAGIC) + 2 and int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 2]) > FORMAT:
        raise invalid(name, "a newer FLM wrote it, in a format that this one does not know; upgrade FLM")
    if len(raw) < HEAD_BYTES:
        raise invalid(name, f"it is cut short: it ends after {len(raw)} bytes")
    _, version, kind, log_n, block, lanes, chunk_bytes, salt, length = _FIELDS.unpack(raw[: _FIELDS.size])
    kinds = {number: kind for kind, number in _KINDS.items()}
    fits = kind in kinds and log_n in _LOG_N_RANGE and block == BLOCK and lanes in _LANES_RANGE
    if version != FORMAT or not fits or chunk_bytes not in _CHUNK_RANGE or not 0 < length < 1 << 40:
        raise invalid(name, "its head is damaged")
    return Head(kinds[kind], log_n, block, lanes, chunk_bytes, salt, length, raw)


def check_size(head: Head, size: int, name: str) -> None:
    """Raises BACKUP_INVALID for a file that is cut short or too long, before anybody is asked for a secret."""
    if size < head.sealed_bytes:
        raise invalid(name, f"it is cut short: it has {size} of its {head.sealed_bytes} bytes")
    if size > head.sealed_bytes:
        raise invalid(name, f"it is damaged: it has {size - head.sealed_bytes} bytes too many")


def unseal(file: BinaryIO, head: Head, secret: Secret, name: str) -> Iterator[bytes]:
    """The content, chunk by chunk, each genuine; only when the last one came is the file known to be whole.

    `file` stands behind its head. Raises BACKUP_INVALID.
    """
    if secret.kind != head.kind:
        raise invalid(name, f"it was sealed with a {head.kind}, not with a {secret.kind}")
    key, head_key = _keys(head, secret)
    if not hmac.compare_digest(hmac.digest(head_key, head.raw[: _FIELDS.size], hashlib.sha256), head.raw[-_MAC_BYTES:]):
        raise invalid(
            name, f"this is not the {head.kind} it was made with (or its first {HEAD_BYTES} bytes are damaged)"
        )
    cipher = ChaCha20Poly1305(key)
    left, number = head.length, 0
    while left:
        wanted = min(left, head.chunk_bytes)
        sealed = _read(file, wanted + _TAG_BYTES)
        if len(sealed) < wanted + _TAG_BYTES:
            raise invalid(name, "it is cut short")
        try:
            yield cipher.decrypt(_nonce(number, last=wanted == left), sealed, head.raw)
        except InvalidTag:
            at = HEAD_BYTES + number * (head.chunk_bytes + _TAG_BYTES)
            raise invalid(name, f"it is damaged within the {len(sealed)} bytes from byte {at} on") from None
        left, number = left - wanted, number + 1
    if file.read(1):
        raise invalid(name, "it is damaged: there are bytes behind its end")


def invalid(name: str, why: str) -> CommandError:
    return CommandError(CommandCode.BACKUP_INVALID, f"{name} was not used: {why}. Nothing was changed")


def _keys(head: Head, secret: Secret) -> tuple[bytes, bytes]:
    """(key of the chunks, key of the head)"""
    derived = Scrypt(salt=head.salt, length=64, n=1 << head.log_n, r=head.block, p=head.lanes).derive(secret.value)
    return derived[:32], derived[32:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])


def _chunked(content: Iterable[bytes], size: int) -> Iterator[bytes]:
    waiting = bytearray()
    for piece in content:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


def _read(file: BinaryIO, wanted: int) -> bytes:
    """`wanted` bytes, fewer only at the end: a pipe gives what it has."""
    found = b""
    while len(found) < wanted and (piece := file.read(wanted - len(found))):
        found += piece
    return found
