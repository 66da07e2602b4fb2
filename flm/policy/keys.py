"""Whose request this is: the Authorization header in, a `Principal` or one and the same 401 out.

The key itself is checked by the native keyring, which is handed in; this file only takes the header apart. Why a
key was refused is never said, so that nobody can learn which ids exist.

Does not know how keys are stored or made, and never keeps or shows one.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from flm.errors import ErrorKind, RequestError

_SCHEME: Final = b"bearer "
_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="flm"'),)
_MESSAGE: Final = "a valid API key is required: send it as `Authorization: Bearer <key>`"


class Keyring(Protocol):
    """The part of the native keyring that is needed here."""

    def verify(self, presented: bytes, now_ms: int, /) -> tuple[str, int] | None:
        """(key id, slot) of a key valid at `now_ms` (Unix milliseconds); None for every other cause."""


class Principal(msgspec.Struct, frozen=True):
    """The key a request came with: its id, and the slot by which shared memory knows it."""

    key_id: str
    slot: int


def authenticate(authorization: bytes | None, keyring: Keyring, now_ms: int) -> Principal:
    """The owner of the request. `authorization` is the header's value, several lines joined with a comma.

    Raises RequestError INVALID_API_KEY, the same for a missing, malformed, unknown, revoked and expired key.
    """
    if authorization is not None and authorization[:7].lower() == _SCHEME:
        verified = keyring.verify(authorization[7:].strip(b" "), now_ms)
        if verified is not None:
            return Principal(*verified)
    raise RequestError(ErrorKind.INVALID_API_KEY, _MESSAGE, headers=_CHALLENGE)
