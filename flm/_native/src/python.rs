//! The Python module `flm._native._ext`: converts arguments and results, and nothing else. The only file that knows pyo3.
//! The documentation for Python is in `_ext.pyi`, which stubtest compares with this module.

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
use crate::gcra::{Limit, Outcome};
use crate::keyformat::{self, Hasher, DIGEST_LEN, SALT_LEN};
use crate::record::Record;
use crate::{bucket, keyring, ring, shared, values};

pyo3::create_exception!(
    flm._native,
    NativeError,
    PyException,
    "A native object cannot do what was asked; the text says why."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::Argument(text) => PyValueError::new_err(text),
            other => NativeError::new_err(other.to_string()),
        }
    }
}

/// A presented key's id, slot and scopes, as Python gets them.
type Verified<'py> = Option<(Bound<'py, pyo3::types::PyString>, u32, u32)>;

fn borrow(fd: &RawFd) -> Result<BorrowedFd<'_>, Error> {
    if *fd < 0 {
        return Err(Error::Argument("a file descriptor is not negative"));
    }
    // SAFETY: not negative; the caller keeps it open during this call, and a closed one only makes `dup` fail (EBADF).
    Ok(unsafe { BorrowedFd::borrow_raw(*fd) })
}

#[pyfunction]
fn generate_key() -> PyResult<(String, String)> {
    let (key, id) = keyformat::generate()?;
    Ok((key, keyformat::id_text(&id).to_owned()))
}

#[pyfunction]
fn key_id(presented: &[u8]) -> Option<String> {
    keyformat::parse(presented).map(|key| keyformat::id_text(&key.id).to_owned())
}

#[pyfunction]
fn hash_secret<'py>(py: Python<'py>, pepper: &[u8], salt: &[u8], presented: &str) -> PyResult<Bound<'py, PyBytes>> {
    let hasher = Hasher::new(pepper)?;
    let salt = fixed_salt(salt)?;
    let key = keyformat::parse(presented.as_bytes())
        .ok_or(Error::Argument("the key is malformed: length, characters or checksum"))?;
    Ok(PyBytes::new(py, &hasher.digest(&salt, &key)))
}

#[pyfunction]
fn json_values(py: Python<'_>, text: &[u8], most: usize) -> usize {
    py.detach(|| values::count(text, most)) // other threads may run meanwhile
}

fn fixed_salt(salt: &[u8]) -> Result<[u8; SALT_LEN], Error> {
    salt.try_into().map_err(|_| Error::Argument("a salt has 16 bytes"))
}

#[pyclass(frozen, module = "flm._native._ext")]
struct Keyring(keyring::Keyring);

#[pymethods]
impl Keyring {
    #[staticmethod]
    fn create(py: Python<'_>, fd: RawFd, capacity: usize) -> PyResult<Keyring> {
        // Writes the whole file: other threads may run meanwhile.
        Ok(Keyring(py.detach(|| keyring::Keyring::create(borrow(&fd)?, capacity))?))
    }

    #[staticmethod]
    fn attach(fd: RawFd, pepper: &[u8]) -> PyResult<Keyring> {
        Ok(Keyring(keyring::Keyring::attach(borrow(&fd)?, pepper)?))
    }

    #[staticmethod]
    fn open_writer(fd: RawFd) -> PyResult<Keyring> {
        Ok(Keyring(keyring::Keyring::open_writer(borrow(&fd)?)?))
    }

    #[allow(clippy::too_many_arguments)] // one for each field of a record, positional as Python calls it
    fn upsert(
        &self,
        key_id: &str,
        slot: u32,
        salt: &[u8],
        digest: &[u8],
        expires_at_ms: u64,
        revoked: bool,
        scopes: u32,
    ) -> PyResult<()> {
        let digest: [u8; DIGEST_LEN] = digest
            .try_into()
            .map_err(|_| Error::Argument("a digest has 32 bytes"))?;
        let id = keyformat::parse_id(key_id)?;
        let record = Record {
            id,
            slot,
            salt: fixed_salt(salt)?,
            digest,
            expires_at_ms,
            revoked,
            scopes,
        };
        Ok(self.0.upsert(&record)?)
    }

    fn remove(&self, key_id: &str) -> PyResult<bool> {
        Ok(self.0.remove(&keyformat::parse_id(key_id)?)?)
    }

    fn holds(&self, key_id: &str) -> PyResult<bool> {
        Ok(self.0.holds(&keyformat::parse_id(key_id)?))
    }

    fn ids(&self) -> Vec<String> {
        self.0
            .ids()
            .iter()
            .map(|id| keyformat::id_text(id).to_owned())
            .collect()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn verify<'py>(&self, py: Python<'py>, presented: &[u8], now_ms: u64) -> PyResult<Verified<'py>> {
        let found = self.0.verify(presented, now_ms)?;
        Ok(found.map(|(id, slot, scopes)| (pyo3::types::PyString::new(py, keyformat::id_text(&id)), slot, scopes)))
    }
}

#[pyclass(frozen, module = "flm._native._ext")]
struct Shared(shared::Shared);

#[pymethods]
impl Shared {
    #[staticmethod]
    fn create(fd: RawFd, worker_slots: usize, snapshot_capacity: usize) -> PyResult<Shared> {
        Ok(Shared(shared::Shared::create(
            borrow(&fd)?,
            worker_slots,
            snapshot_capacity,
        )?))
    }

    #[staticmethod]
    fn attach(fd: RawFd) -> PyResult<Shared> {
        Ok(Shared(shared::Shared::attach(borrow(&fd)?)?))
    }

    fn publish(&self, snapshot: &[u8]) -> PyResult<u64> {
        Ok(self.0.publish(snapshot)?)
    }

    fn epoch(&self) -> u64 {
        self.0.epoch()
    }

    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<(u64, Bound<'py, PyBytes>)> {
        let (epoch, bytes) = self.0.snapshot()?;
        Ok((epoch, PyBytes::new(py, &bytes)))
    }

    fn beat(&self, slot: usize, monotonic_ms: u64) -> PyResult<()> {
        Ok(self.0.beat(slot, monotonic_ms)?)
    }

    fn last_beat(&self, slot: usize) -> PyResult<u64> {
        Ok(self.0.last_beat(slot)?)
    }

    fn add(&self, slot: usize, counter: usize, delta: i64) -> PyResult<()> {
        Ok(self.0.add(slot, counter, delta)?)
    }

    fn counter(&self, slot: usize, counter: usize) -> PyResult<u64> {
        Ok(self.0.counter(slot, counter)?)
    }

    #[getter]
    fn worker_slots(&self) -> usize {
        self.0.worker_slots()
    }
}

/// What a take found, as Python gets it: allowed, remaining, nanoseconds until full, until the next token.
type Found = (bool, u32, u64, u64);

fn found(outcome: Outcome) -> Found {
    (
        outcome.allowed,
        outcome.remaining,
        outcome.full_in_ns,
        outcome.next_in_ns,
    )
}

/// The kinds of buckets by their numbers in Python.
const KINDS: [(&str, bucket::Kind); 6] = [
    ("GLOBAL_BUCKET", bucket::Kind::Global),
    ("KEY_BUCKETS", bucket::Kind::Key),
    ("ADDRESS_BUCKETS", bucket::Kind::Address(bucket::Table::Requests)),
    ("FAILURE_BUCKETS", bucket::Kind::Address(bucket::Table::Failures)),
    ("ADDRESS_OVERFLOW", bucket::Kind::Overflow(bucket::Table::Requests)),
    ("FAILURE_OVERFLOW", bucket::Kind::Overflow(bucket::Table::Failures)),
];

fn table(number: usize) -> Result<bucket::Table, Error> {
    match KINDS.get(number) {
        Some((_, bucket::Kind::Address(table))) => Ok(*table),
        _ => Err(Error::Argument(
            "the table of an address is ADDRESS_BUCKETS or FAILURE_BUCKETS",
        )),
    }
}

fn fixed_boot_id(boot_id: &[u8]) -> Result<[u8; bucket::BOOT_ID_LEN], Error> {
    boot_id
        .try_into()
        .map_err(|_| Error::Argument("a boot id has 16 bytes"))
}

#[pyclass(frozen, module = "flm._native._ext")]
struct Buckets(bucket::Buckets);

#[pymethods]
impl Buckets {
    #[staticmethod]
    #[pyo3(signature = (fd, boot_id, *, keys = 1_048_576, addresses = 262_144, overflow = 4096))]
    fn create(
        py: Python<'_>,
        fd: RawFd,
        boot_id: &[u8],
        keys: usize,
        addresses: usize,
        overflow: usize,
    ) -> PyResult<Buckets> {
        let boot_id = fixed_boot_id(boot_id)?;
        let sizes = bucket::Sizes {
            keys,
            addresses,
            overflow,
        };
        // Writes the whole file: other threads may run meanwhile.
        Ok(Buckets(
            py.detach(|| bucket::Buckets::create(borrow(&fd)?, boot_id, sizes))?,
        ))
    }

    #[staticmethod]
    fn attach(fd: RawFd, boot_id: &[u8]) -> PyResult<Buckets> {
        Ok(Buckets(bucket::Buckets::attach(borrow(&fd)?, fixed_boot_id(boot_id)?)?))
    }

    fn take_global(&self, interval_ns: u64, burst: u32, now_ns: u64) -> PyResult<Found> {
        Ok(found(self.0.take_global(Limit::new(interval_ns, burst)?, now_ns)))
    }

    fn take_key(&self, slot: usize, interval_ns: u64, burst: u32, now_ns: u64) -> PyResult<Found> {
        Ok(found(self.0.take_key(slot, Limit::new(interval_ns, burst)?, now_ns)?))
    }

    fn take_address(
        &self,
        table: usize,
        owner: u64,
        interval_ns: u64,
        burst: u32,
        now_ns: u64,
    ) -> PyResult<(bool, u32, u64, u64, bool)> {
        let limit = Limit::new(interval_ns, burst)?;
        let (outcome, shared) = self.0.take_address(self::table(table)?, owner, limit, now_ns);
        let (allowed, remaining, full_in_ns, next_in_ns) = found(outcome);
        Ok((allowed, remaining, full_in_ns, next_in_ns, shared))
    }

    fn give_back_global(&self, interval_ns: u64, taken_ns: u64, now_ns: u64) {
        self.0.give_back_global(interval_ns, taken_ns, now_ns);
    }

    fn give_back_key(&self, slot: usize, interval_ns: u64, taken_ns: u64, now_ns: u64) -> PyResult<()> {
        Ok(self.0.give_back_key(slot, interval_ns, taken_ns, now_ns)?)
    }

    fn give_back_address(
        &self,
        table: usize,
        owner: u64,
        shared: bool,
        interval_ns: u64,
        taken_ns: u64,
        now_ns: u64,
    ) -> PyResult<()> {
        let times = (taken_ns, now_ns);
        self.0
            .give_back_address(self::table(table)?, owner, shared, interval_ns, times);
        Ok(())
    }

    fn live(&self, py: Python<'_>, now_ns: u64, most: usize) -> Vec<(usize, u64, u64)> {
        // Reads the whole file: other threads may run meanwhile.
        let rows = py.detach(|| self.0.live(now_ns, most)).into_iter();
        let number = |kind| {
            KINDS
                .iter()
                .position(|(_, known)| *known == kind)
                .unwrap_or(KINDS.len())
        };
        rows.map(|(kind, bucket, tat)| (number(kind), bucket, tat)).collect()
    }

    #[getter]
    fn key_slots(&self) -> usize {
        self.0.sizes().keys
    }
}

/// What was taken from a ring, as Python gets it: rows, position, whether what came after them is damaged.
type Rows<'py> = (Vec<Bound<'py, PyBytes>>, u64, bool);

#[pyclass(frozen, module = "flm._native._ext")]
struct Rings(ring::Rings);

#[pymethods]
impl Rings {
    #[staticmethod]
    fn create(fd: RawFd, worker_slots: usize, ring_bytes: usize) -> PyResult<Rings> {
        Ok(Rings(ring::Rings::create(borrow(&fd)?, worker_slots, ring_bytes)?))
    }

    #[staticmethod]
    fn attach(fd: RawFd) -> PyResult<Rings> {
        Ok(Rings(ring::Rings::attach(borrow(&fd)?)?))
    }

    fn prepare(&self, slot: usize) -> PyResult<()> {
        Ok(self.0.prepare(slot)?)
    }

    fn push(&self, slot: usize, row: &[u8]) -> PyResult<bool> {
        Ok(self.0.push(slot, row)?)
    }

    fn take<'py>(&self, py: Python<'py>, slot: usize, most: usize) -> PyResult<Rows<'py>> {
        let taken = self.0.take(slot, most)?;
        let rows = taken.rows.iter().map(|row| PyBytes::new(py, row)).collect();
        Ok((rows, taken.position, taken.damaged))
    }

    #[pyo3(signature = (slot, position, lost = 0))]
    fn release(&self, slot: usize, position: u64, lost: u64) -> PyResult<()> {
        Ok(self.0.release(slot, position, lost)?)
    }

    fn waiting(&self) -> Vec<usize> {
        self.0.waiting()
    }

    fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}

#[pymodule]
fn _ext(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("LAYOUT_VERSION", crate::LAYOUT_VERSION)?;
    module.add("KEY_PATTERN", keyformat::PATTERN)?;
    module.add("SALT_BYTES", SALT_LEN)?;
    module.add("COUNTERS", shared::COUNTERS)?;
    for (number, name) in ["IN_FLIGHT", "REQUESTS", "ERRORS", "LOG_DROPPED", "CONNECTIONS"]
        .into_iter()
        .enumerate()
    {
        module.add(name, number)?;
    }
    for (number, (name, _)) in KINDS.iter().enumerate() {
        module.add(*name, number)?;
    }
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_class::<Keyring>()?;
    module.add_class::<Shared>()?;
    module.add_class::<Buckets>()?;
    module.add_class::<Rings>()?;
    module.add_function(wrap_pyfunction!(generate_key, module)?)?;
    module.add_function(wrap_pyfunction!(key_id, module)?)?;
    module.add_function(wrap_pyfunction!(hash_secret, module)?)?;
    module.add_function(wrap_pyfunction!(json_values, module)?)?;
    Ok(())
}
