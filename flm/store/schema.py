"""What the databases look like: numbered migrations, and what tells FLM's databases from anybody else's.

A migration is a tuple of SQL statements, applied in one transaction together with its number (`PRAGMA user_version`).
Migrations are only ever added; none is changed after a release.

`generation` counts the changes that matter to a running proxy. Triggers bump it, so that whoever changes a row, FLM or
a person with another tool, is noticed. Times are whole Unix seconds unless a column's name says otherwise.

Knows SQL and no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Migration = tuple[str, ...]


class Schema(msgspec.Struct, frozen=True):
    """One database: its name in `Folder`, its number in the file's header, its migrations.

    `synchronous`: FULL where a commit must survive a power cut (a revocation), NORMAL where the last rows may be lost.
    `shrinks`: room that rows have left can be given back to the disk.
    """

    name: Literal["config", "security", "audit"]
    application_id: int
    migrations: tuple[Migration, ...]
    tables: frozenset[str]
    synchronous: Literal["FULL", "NORMAL"]
    shrinks: bool = False

    @property
    def version(self) -> int:
        return len(self.migrations)


_GENERATION: Final[Migration] = (
    "CREATE TABLE generation (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL)",
    "INSERT INTO generation VALUES (1, 1)",
)
_BUMP: Final = "BEGIN UPDATE generation SET value = value + 1; END"


def _watched(table: str, columns: str = "") -> Iterable[str]:
    """Triggers that bump the generation on each change of `table`; of an update, only where `columns` are set."""
    yield f"CREATE TRIGGER {table}_inserted AFTER INSERT ON {table} {_BUMP}"
    yield f"CREATE TRIGGER {table}_updated AFTER UPDATE {columns and 'OF ' + columns} ON {table} {_BUMP}"
    yield f"CREATE TRIGGER {table}_deleted AFTER DELETE ON {table} {_BUMP}"


_CONFIG_1: Final[Migration] = (
    *_GENERATION,
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE upstreams (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, url TEXT NOT NULL,
        connect_timeout REAL, first_byte_timeout REAL, between_bytes_timeout REAL, total_timeout REAL,
        created_at INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE model_aliases (alias TEXT PRIMARY KEY, target TEXT NOT NULL) WITHOUT ROWID",
    # What was last seen of each engine: a cache, so no change of it is a change of configuration.
    """CREATE TABLE engines_cache (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, url TEXT NOT NULL, status TEXT NOT NULL, source TEXT NOT NULL,
        version TEXT, latency_ms REAL, last_error TEXT, models TEXT NOT NULL, checked_at REAL NOT NULL)
        WITHOUT ROWID""",
    *_watched("settings"),
    *_watched("upstreams"),
    *_watched("model_aliases"),
)

# The authorities that an engine's certificate is verified by, as PEM text; NULL: the system's.
_CONFIG_2: Final[Migration] = ("ALTER TABLE upstreams ADD COLUMN ca TEXT",)

_SECURITY_1: Final[Migration] = (
    *_GENERATION,
    # slot: the dense number by which shared memory knows the key. salt, digest: see flm._native.hash_secret.
    """CREATE TABLE api_keys (
        id TEXT PRIMARY KEY, slot INTEGER NOT NULL UNIQUE, label TEXT NOT NULL, scopes TEXT NOT NULL,
        salt BLOB NOT NULL, digest BLOB NOT NULL,
        created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, last_used_at INTEGER) WITHOUT ROWID""",
    "CREATE TABLE engine_credentials (engine_id TEXT PRIMARY KEY, credential TEXT NOT NULL) WITHOUT ROWID",
    *_watched("api_keys", "id, slot, label, scopes, salt, digest, expires_at, revoked_at"),
    *_watched("engine_credentials"),
)

# One row at most; without it the default policy holds.
_SECURITY_2: Final[Migration] = (
    """CREATE TABLE security_policies (
        id TEXT PRIMARY KEY CHECK (id = 'default'), document TEXT NOT NULL, updated_at INTEGER NOT NULL)
        WITHOUT ROWID""",
    *_watched("security_policies"),
)

# What a key is restricted to (patterns and engine ids, one a line; none: all), and the key that took its place.
_SECURITY_3: Final[Migration] = (
    "ALTER TABLE api_keys ADD COLUMN models TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE api_keys ADD COLUMN engines TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE api_keys ADD COLUMN replaced_by TEXT",
    "DROP TRIGGER api_keys_updated",
    f"""CREATE TRIGGER api_keys_updated AFTER UPDATE OF
        id, slot, label, scopes, salt, digest, expires_at, revoked_at, models, engines ON api_keys {_BUMP}""",
)

# What is known of a certificate: nothing that a request needs, so no change of it is watched.
_SECURITY_4: Final[Migration] = (
    """CREATE TABLE certificates (
        id TEXT PRIMARY KEY, directory TEXT NOT NULL, domains TEXT NOT NULL,
        issuer TEXT, serial TEXT, fingerprint TEXT, not_before REAL, not_after REAL, trusted INTEGER NOT NULL,
        renew_after REAL, window_start REAL, window_end REAL, window_next_at REAL,
        last_attempt_at REAL, last_error TEXT, failures INTEGER NOT NULL, next_attempt_at REAL,
        wait_asked INTEGER NOT NULL, next_on_staging INTEGER NOT NULL, updated_at REAL) WITHOUT ROWID""",
)

_SECURITY_5: Final[Migration] = ("ALTER TABLE certificates ADD COLUMN refused TEXT NOT NULL DEFAULT ''",)

# What was used of what CAs allow in a while (`flm.store.allowances`).
_SECURITY_6: Final[Migration] = (
    """CREATE TABLE allowances (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, directory TEXT NOT NULL, name TEXT NOT NULL,
        at REAL NOT NULL, boot TEXT NOT NULL, up REAL NOT NULL)""",
)

CONFIG: Final = Schema(
    name="config",
    application_id=0x464C4D43,  # "FLMC"
    migrations=(_CONFIG_1, _CONFIG_2),
    tables=frozenset({"generation", "settings", "upstreams", "model_aliases", "engines_cache"}),
    synchronous="NORMAL",
)
SECURITY: Final = Schema(
    name="security",
    application_id=0x464C4D53,  # "FLMS"
    migrations=(_SECURITY_1, _SECURITY_2, _SECURITY_3, _SECURITY_4, _SECURITY_5, _SECURITY_6),
    tables=frozenset(
        {"generation", "api_keys", "engine_credentials", "security_policies", "certificates", "allowances"}
    ),
    synchronous="FULL",
)
SCHEMAS: Final = (CONFIG, SECURITY)
