//! The one error type of the crate. It carries numbers and names of causes, and never a byte of a key, a secret, a
//! digest or the pepper. It does not know Python: `python.rs` turns it into `NativeError` or `ValueError`.

use std::fmt;
use std::io;

/// What went wrong. The text of each variant says what happened and, where there is something to do, what to do.
#[derive(Debug)]
pub enum Error {
    /// The system refused to size, map or read a file, or to give random bytes.
    Io(&'static str, io::Error),
    /// The file is not what the caller takes it for: wrong magic, wrong layout version, or damaged.
    Layout(String),
    /// The call cannot be carried out on this object now: full table, too large snapshot, reader asked to write.
    Refused(String),
    /// An argument is outside its bounds. Becomes Python's `ValueError`.
    Argument(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(doing, cause) => write!(out, "could not {doing}: {cause}"),
            Error::Layout(text) | Error::Refused(text) => out.write_str(text),
            Error::Argument(text) => out.write_str(text),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(_, cause) => Some(cause),
            _ => None,
        }
    }
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;
