//! The Python module `flm._native._ext`: converts arguments and results, and nothing else. The only file that knows pyo3.
//! The documentation for Python is in `_ext.pyi`, which stubtest compares with this module.

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
use crate::keyformat::{self, Hasher, DIGEST_LEN, SALT_LEN};
use crate::record::Record;
use crate::{keyring, shared};

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

/// A presented key's place in the keyring, as Python gets it.
type Verified<'py> = Option<(Bound<'py, pyo3::types::PyString>, u32)>;

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

    fn upsert(
        &self,
        key_id: &str,
        slot: u32,
        salt: &[u8],
        digest: &[u8],
        expires_at_ms: u64,
        revoked: bool,
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
        };
        Ok(self.0.upsert(&record)?)
    }

    fn remove(&self, key_id: &str) -> PyResult<bool> {
        Ok(self.0.remove(&keyformat::parse_id(key_id)?)?)
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
        Ok(found.map(|(id, slot)| (pyo3::types::PyString::new(py, keyformat::id_text(&id)), slot)))
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
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_class::<Keyring>()?;
    module.add_class::<Shared>()?;
    module.add_function(wrap_pyfunction!(generate_key, module)?)?;
    module.add_function(wrap_pyfunction!(key_id, module)?)?;
    module.add_function(wrap_pyfunction!(hash_secret, module)?)?;
    Ok(())
}
