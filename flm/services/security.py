"""`SecurityService`: API keys, made, listed and revoked; the policy, shown and replaced.

Strategy: a key's secret exists in the answer to `create_key` and nowhere else; what is stored is its salted hash under
the folder's pepper. A key, a revocation or a policy is in force in a running proxy when the call returns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from flm._native import SALT_BYTES, generate_key, hash_secret
from flm.errors import CommandCode, CommandError
from flm.policy.document import parse_policy, rendered
from flm.services.notice import put_in_force
from flm.services.times import rfc3339
from flm.store import keys as rows
from flm.store import policy as policy_rows
from flm.store.database import Transaction, open_security
from flm.store.folder import Folder
from flm.store.keys import StoredKey
from flm.store.pepper import load_pepper

DEFAULT_LABEL: Final = "default"
DEFAULT_SCOPES: Final = ("inference", "passthrough")  # what a key may do unless told otherwise
LONGEST_LABEL: Final = 64  # a line of a list

log = logging.getLogger("flm.keys")


class Key(msgspec.Struct, frozen=True):
    """A key without its secret. Times are RFC 3339."""

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class CreatedKey(Key, frozen=True, kw_only=True):
    """A new key: `key` is what a client sends, and is never to be had again."""

    key: str

    def __repr__(self) -> str:  # the default would print the secret
        return f"CreatedKey(id={self.id!r}, label={self.label!r})"


class SecurityService:
    """The keys and the policy of one data folder. `now` is the Unix time in seconds."""

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    async def create_key(self, label: str) -> CreatedKey:
        """A new key. Raises USAGE for a label that is not 1 to 64 printable characters."""
        created = await self._create(_checked(label), only_first=False)
        assert created is not None
        return created

    async def ensure_default_key(self) -> CreatedKey | None:
        """The key `default` if no key was ever made in this folder, else None. For the very first start of a proxy."""
        return await self._create(DEFAULT_LABEL, only_first=True)

    async def list_keys(self) -> list[Key]:
        """Every key ever made, oldest first; revoked ones have `revoked_at`."""
        async with await open_security(self._folder) as database:
            return [_shown(key) for key in await rows.all_keys(database)]

    async def revoke_key(self, name: str) -> Key:
        """Revoke a key by its id, or by its label if only one living key has it. Revoking twice changes nothing.

        Raises KEY_NOT_FOUND.
        """
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            found = _named(name, await rows.all_keys(transaction))
            await rows.revoke(transaction, found.id, int(self._now()))
            revoked = next(key for key in await rows.all_keys(transaction) if key.id == found.id)
        await put_in_force(self._folder)
        return _shown(revoked)

    async def policy(self) -> dict[str, Any]:
        """The policy as its document, every default filled in (docs/security.md). Raises POLICY_INVALID if the stored
        one cannot be read."""
        async with await open_security(self._folder) as database:
            return rendered(await policy_rows.current(database))

    async def set_policy(self, document: bytes) -> dict[str, Any]:
        """Replace the policy by a JSON document (UTF-8); what it leaves out is the default. Answers as `policy`.

        Raises POLICY_INVALID saying where and what; then nothing is changed.
        """
        shown = rendered(parse_policy(document))
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            await policy_rows.put(transaction, msgspec.json.encode(shown), int(self._now()))
        await put_in_force(self._folder)
        return shown

    async def _create(self, label: str, *, only_first: bool) -> CreatedKey | None:
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            slot = await rows.next_slot(transaction)
            if only_first and slot:
                return None
            secret, stored = await self._make(transaction, label, slot)
        try:
            await put_in_force(self._folder)
        except CommandError as error:  # the key exists, and this is the only moment to show it
            log.warning("%s", error.message)
        return CreatedKey(**msgspec.structs.asdict(_shown(stored)), key=secret)

    async def _make(self, transaction: Transaction, label: str, slot: int) -> tuple[str, StoredKey]:
        pepper = await asyncio.to_thread(load_pepper, self._folder, create=slot == 0)
        salt = os.urandom(SALT_BYTES)
        secret, key_id = generate_key()
        stored = StoredKey(
            id=key_id,
            slot=slot,
            label=label,
            scopes=DEFAULT_SCOPES,
            salt=salt,
            digest=hash_secret(pepper, salt, secret),
            created_at=int(self._now()),
        )
        await rows.add(transaction, stored)
        return secret, stored


def _checked(label: str) -> str:
    label = label.strip()
    if not 1 <= len(label) <= LONGEST_LABEL or not label.isprintable():
        raise CommandError(
            CommandCode.USAGE, f"a label has 1 to {LONGEST_LABEL} printable characters, not {label!r:.80}"
        )
    return label


def _named(name: str, keys: list[StoredKey]) -> StoredKey:
    by_id = [key for key in keys if key.id == name]
    labelled = [key for key in keys if key.label == name]
    found = by_id or [key for key in labelled if key.revoked_at is None] or labelled
    if not found:
        raise CommandError(
            CommandCode.KEY_NOT_FOUND, f"no key has the id or label {name!r:.80}; `flm api-keys list` shows them"
        )
    if len(found) > 1:
        ids = ", ".join(key.id for key in found)
        raise CommandError(
            CommandCode.KEY_NOT_FOUND, f"{len(found)} keys have the label {name!r:.80}; say which: {ids}"
        )
    return found[0]


def _shown(key: StoredKey) -> Key:
    return Key(
        id=key.id,
        label=key.label,
        scopes=key.scopes,
        created_at=rfc3339(key.created_at),
        expires_at=rfc3339(key.expires_at),
        revoked_at=rfc3339(key.revoked_at),
        last_used_at=rfc3339(key.last_used_at),
    )
