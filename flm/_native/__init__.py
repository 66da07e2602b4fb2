"""What every request needs and several processes share, in Rust: keys, keyring, memory, buckets, rings.

This package only re-exports the compiled module `_ext` (sources in `src/`, documentation in `_ext.pyi`). It does not
know requests, scopes, policies or engines; it opens no file (it is handed descriptors) and reads no clock (time is an
argument). A keyring or shared memory is written by one process, the supervisor, and read by its workers without locks;
the token buckets are charged by all of them; rows go from each worker to the supervisor through a ring.
"""

from flm._native._ext import (
    ADDRESS_BUCKETS,
    ADDRESS_OVERFLOW,
    CONNECTIONS,
    COUNTERS,
    ERRORS,
    FAILURE_BUCKETS,
    FAILURE_OVERFLOW,
    GLOBAL_BUCKET,
    IN_FLIGHT,
    KEY_BUCKETS,
    KEY_PATTERN,
    LAYOUT_VERSION,
    LOG_DROPPED,
    REQUESTS,
    SALT_BYTES,
    Buckets,
    Keyring,
    NativeError,
    Rings,
    Shared,
    generate_key,
    hash_secret,
    json_values,
    key_id,
)

__all__ = [
    "ADDRESS_BUCKETS",
    "ADDRESS_OVERFLOW",
    "CONNECTIONS",
    "COUNTERS",
    "ERRORS",
    "FAILURE_BUCKETS",
    "FAILURE_OVERFLOW",
    "GLOBAL_BUCKET",
    "IN_FLIGHT",
    "KEY_BUCKETS",
    "KEY_PATTERN",
    "LAYOUT_VERSION",
    "LOG_DROPPED",
    "REQUESTS",
    "SALT_BYTES",
    "Buckets",
    "Keyring",
    "NativeError",
    "Rings",
    "Shared",
    "generate_key",
    "hash_secret",
    "json_values",
    "key_id",
]
