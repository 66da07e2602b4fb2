"""What every request needs and several processes share, in Rust: keys, the keyring, the shared memory.

This package only re-exports the compiled module `_ext` (sources in `src/`, documentation in `_ext.pyi`). It does not
know requests, scopes, policies or engines; it opens no file (it is handed descriptors) and reads no clock (time is an
argument). A keyring or shared memory is written by one process, the supervisor, and read by its workers without locks.
"""

from flm._native._ext import (
    CONNECTIONS,
    COUNTERS,
    ERRORS,
    IN_FLIGHT,
    KEY_PATTERN,
    LAYOUT_VERSION,
    LOG_DROPPED,
    REQUESTS,
    SALT_BYTES,
    Keyring,
    NativeError,
    Shared,
    generate_key,
    hash_secret,
    key_id,
)

__all__ = [
    "CONNECTIONS",
    "COUNTERS",
    "ERRORS",
    "IN_FLIGHT",
    "KEY_PATTERN",
    "LAYOUT_VERSION",
    "LOG_DROPPED",
    "REQUESTS",
    "SALT_BYTES",
    "Keyring",
    "NativeError",
    "Shared",
    "generate_key",
    "hash_secret",
    "key_id",
]
