"""Whose request this is: the Authorization header in, a `Principal` or one and the same 401 out.

The key itself is checked by the native keyring, which is handed in; this file only takes the header apart. Why a
key was refused is never said, so that nobody can learn which ids exist; what a valid key may not do is said plainly.

Does not know how keys are stored or made, and never keeps or shows one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from flm.errors import ErrorKind, RequestError
from flm.policy import scopes as known
from flm.policy.restrictions import NOTHING, Restriction

_SCHEME: Final = b"bearer "
_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="flm"'),)
_MESSAGE: Final = "a valid API key is required: send it as `Authorization: Bearer <key>`"


class Keyring(Protocol):
    """The part of the native keyring that is needed here."""

    def verify(self, presented: bytes, now_ms: int, /) -> tuple[str, int, int] | None:
        """(key id, slot, scopes) of a key valid at `now_ms` (Unix milliseconds); None for every other cause."""

    def holds(self, key_id: str, /) -> bool:
        """Whether this key is there and not revoked."""


class Principal(msgspec.Struct, frozen=True):
    """The key a request came with: its id, the slot by which shared memory knows it, what it may do (bits of
    `flm.policy.scopes`) and what it is restricted to, None if to nothing."""

    key_id: str
    slot: int
    scopes: int
    restriction: Restriction | None = None

    def demand(self, scope: int) -> None:
        """Raises RequestError PERMISSION_DENIED if the key has not this scope (0: none is needed)."""
        if scope and not self.scopes & scope:
            message = f"this API key has not the scope `{known.name_of(scope)}`; `flm api-keys list` shows what it has"
            raise RequestError(ErrorKind.PERMISSION_DENIED, message)


def authenticate(
    authorization: bytes | None, keyring: Keyring, now_ms: int, restrictions: Mapping[str, Restriction]
) -> Principal:
    """The owner of the request. `authorization` is the header's value, several lines joined with a comma;
    `restrictions` are those of all keys that have one, by key id.

    Raises RequestError INVALID_API_KEY, the same for a missing, malformed, unknown, revoked and expired key.
    """
    if authorization is not None and authorization[:7].lower() == _SCHEME:
        verified = keyring.verify(authorization[7:].strip(b" "), now_ms)
        if verified is not None:
            key_id, slot, scopes = verified
            restriction = restrictions.get(key_id, NOTHING) if scopes & known.RESTRICTED else None
            return Principal(key_id, slot, scopes, restriction)
    raise RequestError(ErrorKind.INVALID_API_KEY, _MESSAGE, headers=_CHALLENGE)
