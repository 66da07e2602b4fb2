"""`SecurityService`: API keys, made, listed, replaced and revoked; the policy, shown and replaced; what is left of
its limits; what is known of certificates.

Strategy: a key's secret exists in the answer to `create_key` or `rotate_key` and nowhere else; what is stored is its
salted hash under the folder's pepper. A key, its replacement, a revocation or a policy is in force in a running proxy
when the call returns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flm._native import SALT_BYTES, generate_key, hash_secret
from flm.errors import CommandCode, CommandError
from flm.policy.document import parse_policy, rendered
from flm.policy.scopes import DEFAULT_SCOPES
from flm.services import lifetimes
from flm.services.grants import checked_engines, checked_label, checked_models, checked_scopes, open_nothing
from flm.services.notice import put_in_force
from flm.services.rates import Bucket, buckets_of
from flm.services.times import rfc3339
from flm.store import keys as rows
from flm.store import policy as policy_rows
from flm.store.database import Transaction, open_security
from flm.store.folder import Folder
from flm.store.keys import StoredKey
from flm.store.pepper import load_pepper

if TYPE_CHECKING:
    from flm.services.certificates import Certificate

DEFAULT_LABEL: Final = "default"
LOOK_SECONDS: Final = 8.0  # for engines, of which a look takes 5, and their models

log = logging.getLogger("flm.keys")


class Key(msgspec.Struct, frozen=True):
    """A key without its secret. Times are RFC 3339.

    `models`, `engines`: patterns and ids it is restricted to, empty: all. `last_used_at`: to a few seconds.
    `replaced_by`: the id of the key that took its place by `rotate_key`.
    """

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    replaced_by: str | None = None


class CreatedKey(Key, frozen=True, kw_only=True):
    """A new key: `key` is what a client sends, and is never to be had again. `warnings`: which of its restrictions fit
    nothing that is there now."""

    key: str
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:  # the default would print the secret
        return f"CreatedKey(id={self.id!r}, label={self.label!r})"


class RotatedKey(CreatedKey, frozen=True, kw_only=True):
    """A key in another's place: that one's id, and until when it is still valid; None: no longer."""

    replaces: str
    replaced_valid_until: str | None

    def __repr__(self) -> str:
        return f"RotatedKey(id={self.id!r}, label={self.label!r}, replaces={self.replaces!r})"


class Grant(msgspec.Struct, frozen=True):
    """What a new key is to be: checked values. `expires_at` in Unix seconds."""

    label: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    expires_at: int | None = None


class SecurityService:
    """The keys and the policy of one data folder. `now` is the Unix time in seconds."""

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    async def create_key(
        self,
        label: str,
        *,
        expires: str | None = None,
        scopes: Sequence[str] = (),
        models: Sequence[str] = (),
        engines: Sequence[str] = (),
    ) -> CreatedKey:
        """A new key. `expires`: a duration or a moment (`flm.services.lifetimes`), None: never.

        `scopes`: names from `flm.policy.scopes`, none: `inference` and, without `models`, `passthrough`. `models`,
        `engines`: what it is restricted to. Raises USAGE for a label that is not 1 to 64 printable characters or holds
        a key, for an expiry that is not understood or past, and for scopes, patterns and ids that cannot be. Engines
        and models that are not there now are allowed, and told of.
        """
        chosen = checked_models(models)
        grant = Grant(
            checked_label(label),
            checked_scopes(scopes, chosen),
            chosen,
            checked_engines(engines),
            None if expires is None else lifetimes.moment(expires, "the expiry", self._now()),
        )
        # First: the key is shown once, and looking for engines takes seconds in which somebody may interrupt.
        warnings = await self._missing(grant)
        created = await self._create(grant, only_first=False)
        assert created is not None
        return msgspec.structs.replace(created, warnings=warnings)

    async def _missing(self, grant: Grant) -> tuple[str, ...]:
        """What to say of restrictions that open nothing now; logged, too."""
        if not (grant.models or grant.engines):
            return ()
        from flm.services.engines import EngineService  # only here: it takes its time to load

        try:
            async with asyncio.timeout(LOOK_SECONDS):
                known = await EngineService(self._folder).serving()
        except (CommandError, TimeoutError) as error:
            why = error.message if isinstance(error, CommandError) else f"an engine took over {LOOK_SECONDS:g} s"
            warnings: tuple[str, ...] = (f"what engines and models there are could not be seen: {why}",)
        else:
            warnings = open_nothing(grant.models, grant.engines, known)
        for warning in warnings:
            log.warning("%s", warning)
        return warnings

    async def ensure_default_key(self) -> CreatedKey | None:
        """The key `default` if no key was ever made in this folder, else None. For the very first start of a proxy."""
        return await self._create(Grant(DEFAULT_LABEL), only_first=True)

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

    async def rotate_key(self, name: str, *, grace: str | None = None) -> RotatedKey:
        """A new key in the place of one that is found as by `revoke_key`: the same label, scopes, restrictions and end.

        The old key is revoked, or, with `grace` (a duration), valid until that has passed. Raises KEY_NOT_FOUND, also
        for a key that is no longer valid or was replaced before; USAGE for a grace that is not understood.
        """
        seconds = None if grace is None else lifetimes.seconds(grace, "the grace")
        now = int(self._now())
        if grace is not None:
            lifetimes.moment(grace, "the grace", now)  # its end can still be written as a date
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            old = _replaceable(_named(name, await rows.all_keys(transaction), replaced=False), now)
            grant = Grant(old.label, old.scopes, old.models, old.engines, old.expires_at)
            secret, stored = await self._make(transaction, grant, await rows.next_slot(transaction))
            until = None if seconds is None else min(now + seconds, old.expires_at or now + seconds)
            await rows.replace(transaction, old.id, stored.id, old.expires_at if until is None else until)
            if until is None:
                await rows.revoke(transaction, old.id, now)
        await self._tell()
        return RotatedKey(
            **msgspec.structs.asdict(_shown(stored)), key=secret, replaces=old.id, replaced_valid_until=rfc3339(until)
        )

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

    async def rate_limits(self) -> list[Bucket]:
        """The buckets of the policy's limits as they stand, whether a proxy runs or not: see `rates.buckets_of`."""
        return await buckets_of(self._folder)

    async def certificates(self) -> list[Certificate]:
        """What is known of FLM's own certificates, whether a proxy runs or not: see `certificates.certificates_of`."""
        from flm.services.certificates import certificates_of  # loads what reads certificates: half of a command's time

        return await certificates_of(self._folder)

    async def _create(self, grant: Grant, *, only_first: bool) -> CreatedKey | None:
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            slot = await rows.next_slot(transaction)
            if only_first and slot:
                return None
            secret, stored = await self._make(transaction, grant, slot)
        await self._tell()
        return CreatedKey(**msgspec.structs.asdict(_shown(stored)), key=secret)

    async def _tell(self) -> None:
        """Put a new key in force; it exists also if that fails, and this is the only moment to show it."""
        try:
            await put_in_force(self._folder)
        except CommandError as error:
            log.warning("%s", error.message)

    async def _make(self, transaction: Transaction, grant: Grant, slot: int) -> tuple[str, StoredKey]:
        pepper = await asyncio.to_thread(load_pepper, self._folder, create=slot == 0)
        salt = os.urandom(SALT_BYTES)
        secret, key_id = generate_key()
        stored = StoredKey(
            id=key_id,
            slot=slot,
            label=grant.label,
            scopes=grant.scopes,
            salt=salt,
            digest=hash_secret(pepper, salt, secret),
            created_at=int(self._now()),
            expires_at=grant.expires_at,
            models=grant.models,
            engines=grant.engines,
        )
        await rows.add(transaction, stored)
        return secret, stored


def _replaceable(key: StoredKey, now: int) -> StoredKey:
    if key.replaced_by is not None:
        why = f"was replaced by {key.replaced_by} before; rotate that one"
    elif key.damaged:
        why = "is damaged in the database, and no valid key; revoke it, and make a new one with `flm api-keys create`"
    elif key.revoked_at is not None:
        why = "is revoked; make a new one with `flm api-keys create`"
    elif key.expires_at is not None and key.expires_at <= now:
        why = "has expired; make a new one with `flm api-keys create`"
    else:
        return key
    raise CommandError(CommandCode.KEY_NOT_FOUND, f"key {key.id} {why}")


def _named(name: str, keys: list[StoredKey], *, replaced: bool = True) -> StoredKey:
    """The key of this id or label. `replaced`: of several with one label, those that were replaced count too."""
    by_id = [key for key in keys if key.id == name]
    labelled = [key for key in keys if key.label == name]
    living = [key for key in labelled if key.revoked_at is None and (replaced or key.replaced_by is None)]
    found = by_id or living or labelled
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
        models=key.models,
        engines=key.engines,
        replaced_by=key.replaced_by,
    )
