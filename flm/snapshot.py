"""What one request sees: settings, policy, engines and aliases, frozen at one epoch.

The supervisor builds a `Snapshot` and publishes its bytes in shared memory; a worker decodes it when the epoch has
moved and keeps it for each request that begins meanwhile. Keys are not in here: they live in the keyring, mapped and
looked up by the native crate, so that ten thousand keys are not decoded again for one change; only what some of them
are restricted to is.

Knows nothing of shared memory, databases or engines' dialects: only shapes and their encoding.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.config import Settings
from flm.policy.document import Policy
from flm.policy.restrictions import Restriction

STATUSES: Final = ("InstalledOnly", "RunningHealthy", "RunningDegraded", "ErrorNetwork", "ErrorApi")
SERVING: Final = frozenset({"RunningHealthy", "RunningDegraded"})


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model of one engine, under the engine's own name. Lengths are tokens; `created` Unix seconds, 0: unknown.

    `other_names` are further names the engine takes for it; they lead here where no model is really called so.
    `any_case`: the engine takes its names whether written in capitals or not.
    """

    name: str
    context_length: int | None = None
    trained_context_length: int | None = None
    loaded: bool | None = None
    capabilities: tuple[str, ...] = ()
    created: int = 0
    other_names: tuple[str, ...] = ()
    any_case: bool = False


class Engine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One engine as requests need it. `url` is scheme://host:port with an optional base path, no trailing slash.

    `credential` is FLM's own bearer token for the engine; the encoded snapshot therefore stays in 0600 memory.
    Timeouts are seconds; None takes the setting of the same name; a total of 0 is none. `last_error` says in plain
    words why the engine is not serving; it goes to callers, so it never holds the credential. `ca`: PEM text of the
    authorities that verify an `https` engine, None for the system's.
    """

    id: str
    kind: str
    url: str
    status: str
    version: str | None = None
    credential: str | None = None
    models: tuple[Model, ...] = ()
    connect_timeout: float | None = None
    first_byte_timeout: float | None = None
    between_bytes_timeout: float | None = None
    total_timeout: float | None = None
    last_error: str | None = None
    ca: str | None = None

    def __repr__(self) -> str:  # the default would print the credential
        return f"Engine(id={self.id!r}, kind={self.kind!r}, url={self.url!r}, status={self.status!r})"


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a request needs to know but its key. `instance` is the running proxy's id, used to see oneself.

    `restrictions`: by key id, for the keys that have one; their records in the keyring say so (`scopes.RESTRICTED`).
    """

    instance: str
    settings: Settings
    engines: tuple[Engine, ...] = ()
    aliases: dict[str, str] = {}
    policy: Policy = Policy()
    restrictions: dict[str, Restriction] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    return _encoder.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Raises msgspec.ValidationError if the bytes are of another layout: the publisher and the reader differ."""
    return _decoder.decode(data)
