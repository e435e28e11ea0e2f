//! Files that an operator names: a configuration, a certificate, a secret, a list of devices, a captured request.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;

/// Opens a file for reading, and does not wait for it: to open a pipe waits for its writer, and a device may never end.
///
/// # Errors
/// As the system gives them, and [`io::ErrorKind::InvalidInput`] for what is no regular file, be it by a link.
pub fn open(path: &Path) -> io::Result<File> {
    // Asked first, since to open some devices does something to them, and of what was opened, since a name can be given anew.
    if !std::fs::metadata(path).map_err(noted)?.is_file() {
        return Err(no_file());
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(noted)?;
    if file.metadata().map_err(noted)?.is_file() { Ok(file) } else { Err(no_file()) }
}

/// The bytes of a file of at most `most` bytes.
///
/// # Errors
/// As for [`open`], and [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(noted)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

/// The text of a file of at most `most` bytes.
///
/// # Errors
/// As for [`read`], and [`io::ErrorKind::InvalidData`] where it is not UTF-8.
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// Runs what reads files, and says whether the system failed it: too many files are open, there is no memory, a disk errs, a
/// server is away. That says nothing of the files, which may well be read in a moment though they do not change.
pub fn attempt<T>(read: impl FnOnce() -> T) -> (T, bool) {
    let before = FAILURES.get();
    let result = read();
    (result, FAILURES.get() != before)
}

/// An error of reading, once [`attempt`] knows of it.
pub(crate) fn noted(error: io::Error) -> io::Error {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound};
    if !matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput | IsADirectory | NotADirectory | NotFound) {
        FAILURES.set(FAILURES.get().wrapping_add(1));
    }
    error
}

thread_local! {
    /// How often the system failed on this thread.
    static FAILURES: Cell<u64> = const { Cell::new(0) };
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
}

/// Most bytes of a configuration, and of tests of its policies.
pub const CONFIGURATION: u64 = 8 << 20;

/// Most bytes of a file with certificates or keys.
pub const CERTIFICATES: u64 = 4 << 20;

/// Most bytes of a file with a secret.
pub const SECRET: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_system_is_told_from_a_mistake_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        // There is nothing at the address 0 of a process.
        assert!(attempt(|| read(Path::new("/proc/self/mem"), 10).unwrap_err()).1);
        std::fs::write(folder.path().join("file"), [0xff; 10]).unwrap();
        let mistakes = || [("nothing", 10), (".", 10), ("file/a", 10), ("file", 9), ("file", 10)];
        let (results, failed) = attempt(|| mistakes().map(|(name, most)| text(&folder.path().join(name), most)));
        assert!(!failed && results.iter().all(Result::is_err), "{results:?}");
    }

    #[test]
    fn g12_what_is_no_regular_file_is_refused_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        for path in [at("pipe"), at("link"), at("socket"), at("."), "/dev/zero".into(), "/dev/null".into()] {
            let error = read(&path, 10).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::InvalidInput, "is not a regular file"), "{path:?}");
        }
        assert_eq!(open(&at("nothing")).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(at("file"), b"0123456789").unwrap();
        std::os::unix::fs::symlink(at("file"), at("another")).unwrap();
        assert_eq!(read(&at("another"), 10).unwrap(), b"0123456789");
        assert_eq!(read(&at("file"), 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(at("file"), [0xff]).unwrap();
        assert_eq!(text(&at("file"), 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
