"""From the databases into shared memory: what requests see, in force for the very next one.

Strategy: read everything, bring the keyring up to date by its differences, then publish the snapshot, whose new epoch
makes both visible. Changes made by others are noticed by their databases' `generation`. What cannot be read leaves the
last good state in force, and is remembered for `status`. A policy that cannot be read is fail-closed: nothing starts
with it, and where one is in force it stays so, while revocations and all else go on. A damaged row is no key.

Knows the store and the shared memory; no worker, no socket, no engine's dialect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from flm._native import Keyring, NativeError, generate_key, hash_secret
from flm.config import Resolved, Settings, Value, resolve
from flm.errors import CommandCode, CommandError
from flm.policy import scopes
from flm.policy.document import Policy
from flm.policy.restrictions import Restriction
from flm.runtime.memory import Memory
from flm.runtime.opened import Opened
from flm.snapshot import Engine, Snapshot, encode
from flm.store import engines as engine_rows
from flm.store import keys as key_rows
from flm.store import policy as policy_rows
from flm.store import settings as setting_rows
from flm.store.database import Database
from flm.store.folder import Folder
from flm.store.pepper import load_pepper

CHAT_KEY_SECONDS: Final = 900.0  # a key for one `flm chat`: no answer takes longer to begin
NOT_PUBLISHED: Final = "its model list cannot be published, and is left out: too large, or not to be encoded"
_FIRST_CHAT_SLOT: Final = 1 << 31  # beyond every slot of the database
_SALT_BYTES: Final = 16
_SHOWN: Final = 5  # damaged rows that a message names
_LATEST_MS: Final = (1 << 64) - 1  # that the keyring can hold; 0 there is no end

_Entry = tuple[int, bytes, bytes, int, int]  # slot, salt, digest, expiry in Unix milliseconds, scopes

log = logging.getLogger("flm.supervisor")


class Publisher:
    """Reads the databases of one folder and keeps one proxy's shared memory up to date."""

    def __init__(self, folder: Folder, flags: Mapping[str, Value], instance: str) -> None:
        self._folder = folder
        self._flags = flags
        self._instance = instance
        self._opened = Opened(folder)
        self._entries: dict[str, _Entry] = {}
        self._chat_keys: dict[str, float] = {}
        self._turn = asyncio.Lock()
        self._seen = (-1, -1)
        self.engines: tuple[Engine, ...] = ()  # for the next refresh
        self.engines_in_force: tuple[Engine, ...] = ()  # what requests know
        self.policy: Policy | None = None  # the last one that could be read
        self._policy_error: str | None = None
        self._damaged_error: str | None = None  # which rows are no keys
        self._bare_error: str | None = None  # which engines are in force without their models
        self._revoked = False  # a key, and nobody was told yet
        self.on_revocation: Callable[[], None] = lambda: None  # called once requests with the key are refused
        self.resolved = Resolved(resolve({}, {}).settings, {})
        self.last_error: str | None = None

    async def open(self) -> None:
        """Open, create or migrate the databases, and make sure of the pepper. Raises CommandError."""
        await self._opened.open()
        keys = await key_rows.all_keys(self.databases()[1])
        await asyncio.to_thread(load_pepper, self._folder, create=not keys)

    async def close(self) -> None:
        await self._opened.close()

    async def key_count(self) -> int:
        return len(await key_rows.all_keys(self.databases()[1]))

    def settings(self) -> Settings | None:
        """The settings that were loaded last; None if none were."""
        return self.resolved.settings if self.resolved.sources else None

    async def load_settings(self) -> Resolved:
        """The settings as they stand. Raises CONFIG_INVALID, DB_ERROR; what was loaded before stays."""
        config, _ = self.databases()
        self.resolved = resolve(await setting_rows.all_settings(config), os.environ, self._flags)
        return self.resolved

    async def load_policy(self) -> Policy:
        """The policy as it stands. Raises POLICY_INVALID with what mends it, DB_ERROR; the one before stays.

        A policy whose row was deleted counts as one that cannot be read, until one is set again.
        """
        self.policy = await policy_rows.current(self.databases()[1], self.policy)
        self._policy_error = None
        return self.policy

    async def _policy_in_force(self) -> Policy:
        """The policy as it stands, or the last good one; without either raises as `load_policy`."""
        try:
            return await self.load_policy()
        except CommandError as error:
            if self.policy is None or error.code is not CommandCode.POLICY_INVALID:
                raise
            if self._policy_error != error.message:
                log.error("the policy of before stays in force: %s", error.message)
            self._policy_error = error.message
            return self.policy

    async def refresh(self, memory: Memory) -> int:
        """Publish the databases' present state; its epoch, in force for each request that begins from now on.

        Raises CommandError; then what was in force stays, but for keys that were revoked.
        """
        async with self._turn:
            try:
                return await self._refresh(memory)
            finally:
                self._tell_of_revocation()

    async def _refresh(self, memory: Memory) -> int:
        await self._look()
        config, security = self.databases()
        security_seen = await security.generation()
        keys = await key_rows.all_keys(security)
        self._revoke(memory.keyring, keys)  # before anything that may not be readable
        seen = (await config.generation(), security_seen)
        resolved = resolve(await setting_rows.all_settings(config), os.environ, self._flags)
        aliases = await engine_rows.aliases(config)
        policy = await self._policy_in_force()
        try:
            self._update_keyring(memory.keyring, keys)
            restrictions = _restrictions(keys)
            snapshot = Snapshot(
                self._instance, resolved.settings, self.engines, aliases, policy, restrictions=restrictions
            )
            epoch, bare = _published(memory, snapshot)
        except NativeError as error:
            raise CommandError(
                CommandCode.DB_ERROR,
                f"what is stored cannot be put in force: {error}; free some of the disk if it is full, else "
                "`flm proxy stop` and `start` make room",
            ) from None
        self._seen = seen
        self.resolved = resolved
        self.engines_in_force = snapshot.engines
        self._say_bare(bare)
        self._say_damaged([key.id for key in keys if key.damaged and key.revoked_at is None])
        self.last_error = self._policy_error or self._damaged_error or self._bare_error
        return epoch

    def _say_bare(self, ids: list[str]) -> None:
        error = f"{', '.join(ids)}: {NOT_PUBLISHED}" if ids else None
        if error is not None and error != self._bare_error:
            log.error("%s", error)
        self._bare_error = error

    def _say_damaged(self, ids: list[str]) -> None:
        error = f"damaged rows of security.db are no valid keys: {', '.join(ids[:_SHOWN]):.200}" if ids else None
        if error is not None and error != self._damaged_error:
            log.error("%s", error)
        self._damaged_error = error

    def _tell_of_revocation(self) -> None:
        if self._revoked and self.resolved.settings.security_revoke_ends_streams:
            self.on_revocation()
        self._revoked = False

    async def changed(self) -> bool:
        """Whether somebody changed a database since the last refresh, or put another in its place. Raises DB_ERROR."""
        await self._look()
        config, security = self.databases()
        return (await config.generation(), await security.generation()) != self._seen

    async def chat_key(self, memory: Memory) -> str:
        """A key that works for CHAT_KEY_SECONDS and is written down nowhere."""
        async with self._turn:
            key, key_id = generate_key()
            salt = os.urandom(_SALT_BYTES)
            pepper = await asyncio.to_thread(load_pepper, self._folder, create=False)
            expires = time.time() + CHAT_KEY_SECONDS
            self._chat_keys = {known: end for known, end in self._chat_keys.items() if end > time.time()}
            slot = _FIRST_CHAT_SLOT + len(self._chat_keys)
            try:
                digest = hash_secret(pepper, salt, key)
                memory.keyring.upsert(key_id, slot, salt, digest, int(expires * 1000), False, scopes.INFERENCE)
            except NativeError as error:
                raise CommandError(CommandCode.IO_ERROR, f"no key can be made: {error}") from None
            self._chat_keys[key_id] = expires
            return key

    @property
    def chat_keys(self) -> dict[str, float]:
        """Ids of living chat keys, with their end in Unix seconds."""
        return dict(self._chat_keys)

    def adopt_snapshot(self, published: Snapshot) -> None:
        """What an earlier image of this process published is in force still."""
        self.engines = self.engines_in_force = published.engines
        self.policy = published.policy

    def adopt(self, keyring: Keyring, chat_keys: Mapping[str, float]) -> None:
        """The keyring was filled by an earlier image of this process: the next refresh takes out what is no key."""
        self._chat_keys = dict(chat_keys)
        self._entries = dict.fromkeys(set(keyring.ids()) - chat_keys.keys(), (-1, b"", b"", 0, 0))

    def _revoke(self, keyring: Keyring, keys: list[key_rows.StoredKey]) -> None:
        valid = {key.id for key in keys if _is_valid(key)}
        for key_id in self._entries.keys() - valid:
            keyring.remove(key_id)
            del self._entries[key_id]
            self._revoked = True

    def _update_keyring(self, keyring: Keyring, keys: list[key_rows.StoredKey]) -> None:
        wanted = {key.id: (key.slot, key.salt, key.digest, _end(key), _bits(key)) for key in keys if _is_valid(key)}
        for key_id, entry in wanted.items():
            if self._entries.get(key_id) != entry:
                slot, salt, digest, expires, granted = entry
                keyring.upsert(key_id, slot, salt, digest, expires, False, granted)
                self._entries[key_id] = entry

    async def _look(self) -> None:
        """Raises CommandError if a database is gone; what is there again, or anew, has changed."""
        try:
            if await self._opened.look():
                self._seen = (-1, -1)
        except CommandError:
            self._seen = (-1, -1)
            raise

    def databases(self) -> tuple[Database, Database]:
        """config.db and security.db. Raises DB_ERROR if they could not be opened."""
        return self._opened.both()


def _published(memory: Memory, snapshot: Snapshot) -> tuple[int, list[str]]:
    """Publish; the epoch, and the ids of engines that are in it without their models.

    An engine that cannot be encoded loses its models, and says so in its `last_error`, rather than keep everything else
    from being in force; where all together are too large, that is the one with most. Raises NativeError.
    """
    sizes = [_encoded_size(engine) for engine in snapshot.engines]
    engines = [
        engine if size is not None else _bare(engine) for engine, size in zip(snapshot.engines, sizes, strict=True)
    ]
    bare = [engine.id for engine, size in zip(engines, sizes, strict=True) if size is None]
    rest = sorted((index for index, engine in enumerate(engines) if engine.models), key=lambda each: sizes[each] or 0)
    while True:
        try:
            epoch = memory.shared.publish(encode(msgspec.structs.replace(snapshot, engines=tuple(engines))))
        except NativeError:
            if not rest:
                raise
            largest = rest.pop()
            engines[largest] = _bare(engines[largest])
            bare.append(engines[largest].id)
        else:
            return epoch, sorted(bare)


def _encoded_size(engine: Engine) -> int | None:
    """Bytes in the snapshot; None if the engine cannot be encoded."""
    try:
        return len(msgspec.msgpack.encode(engine))
    except (ValueError, OverflowError, TypeError, RecursionError):
        return None


def _bare(engine: Engine) -> Engine:
    """The engine without what it says of itself."""
    return msgspec.structs.replace(engine, models=(), version=None, last_error=NOT_PUBLISHED)


def _is_valid(key: key_rows.StoredKey) -> bool:
    """But for its end, which requests look at."""
    return key.revoked_at is None and not key.damaged


def _end(key: key_rows.StoredKey) -> int:
    """In Unix milliseconds, as the keyring has it; an end before 1970 has passed too."""
    return 0 if key.expires_at is None else min(max(key.expires_at * 1000, 1), _LATEST_MS)


def _bits(key: key_rows.StoredKey) -> int:
    """What the keyring says of a key: its scopes, and whether the snapshot has more to say."""
    return scopes.bits(key.scopes) | (scopes.RESTRICTED if key.models or key.engines else 0)


def _restrictions(keys: list[key_rows.StoredKey]) -> dict[str, Restriction]:
    return {
        key.id: Restriction(key.models, key.engines) for key in keys if _is_valid(key) and (key.models or key.engines)
    }
