//! The native crate of FLM: what every request needs and several processes share.
//!
//! * [`keyformat`]: the text of an API key (generate, check, take apart) and how its secret is hashed.
//! * [`record`]: what is known of one key, as words.
//! * [`keyring`]: the table of keys that the supervisor writes and every worker reads.
//! * [`shared`]: the epoch, the published snapshot, and the heartbeat and counters of each worker slot.
//! * [`bucket`]: the token buckets that all workers charge.
//! * [`charge`]: how one bucket is charged while others charge it, without a lock.
//! * [`gcra`]: the arithmetic of a rate limit.
//! * [`ring`]: the rings through which workers hand rows to the supervisor.
//! * [`spsc`]: how a row crosses one ring, without a lock, and is never torn.
//! * [`latch`]: how one writer replaces a value that other processes are reading, without a lock.
//! * [`moves`]: how a reader finds what the writer moves meanwhile, without a lock.
//! * [`mapping`]: a file mapped into memory as 64-bit atomics, and the header that names its layout.
//! * [`siphash`]: the keyed hash of a number.
//! * [`values`]: how many values a JSON text holds, without parsing it.
//! * [`error`]: the one error type.
//! * `python`: the binding, the only file that knows pyo3.
//!
//! The crate does not know what a request, a scope, a policy or an engine is; it opens no file and no socket (it is
//! handed descriptors), reads no clock (time is an argument), writes no log and starts no thread.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod charge;
pub mod error;
pub mod gcra;
pub mod latch;
pub mod moves;
pub mod spsc;

// The model checker (cfg(loom)) looks at the latch, at moves, at charging and at a ring: its atomics are not memory that can be mapped.
#[cfg(not(loom))]
pub mod bucket;
#[cfg(not(loom))]
pub mod keyformat;
#[cfg(not(loom))]
pub mod keyring;
#[cfg(not(loom))]
pub mod mapping;
#[cfg(all(feature = "python", not(loom)))]
mod python;
#[cfg(not(loom))]
pub mod record;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
pub mod shared;
#[cfg(not(loom))]
pub mod siphash;
#[cfg(not(loom))]
pub mod values;

/// Version of the layout of all files (keyring, shared memory, buckets, rings). Raised by every change to what a byte in them
/// means; a file of another version is refused, and the supervisor makes a new one.
pub const LAYOUT_VERSION: u64 = 3;
