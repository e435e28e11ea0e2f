//! Files that an operator names: a configuration, a certificate, a secret, a list of devices, a captured request.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;

/// Opens a regular file for reading without waiting: opening a pipe would wait for its writer, and a device may never end.
///
/// # Errors
/// The system's errors, and [`io::ErrorKind::InvalidInput`] where the path, or the target of its link, is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // The path is checked first, since opening some devices has effects, and the opened file again, since the path may name
    // another file by then.
    if !std::fs::metadata(path).map_err(noted)?.is_file() {
        return Err(no_file());
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(noted)?;
    if file.metadata().map_err(noted)?.is_file() { Ok(file) } else { Err(no_file()) }
}

/// The unit and the credential's name of a file that systemd gives to a service by `LoadCredential=`; `None` for any other file.
pub fn credential(path: &Path) -> Option<(&str, &str)> {
    path.strip_prefix(CREDENTIALS).ok()?.to_str()?.split_once('/')
}

/// Folder of systemd's credentials, with a folder for each unit.
pub const CREDENTIALS: &str = "/run/credentials";

/// Reads the bytes of a file, at most `most`.
///
/// # Errors
/// The errors of [`open`], and [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(noted)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

/// Reads the text of a file of at most `most` bytes.
///
/// # Errors
/// The errors of [`read`], and [`io::ErrorKind::InvalidData`] where the file is not UTF-8.
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// Runs a reader of files; the flag says whether the system failed it: too many files are open, there is no memory, a disk errs,
/// a server is away. Such a failure says nothing of the files: an unchanged file may well be readable in a moment.
pub fn attempt<T>(read: impl FnOnce() -> T) -> (T, bool) {
    let before = FAILURES.get();
    let result = read();
    (result, FAILURES.get() != before)
}

/// Counts an error of reading a file for [`attempt`], if it is a failure of the system, and returns it.
pub fn noted(error: io::Error) -> io::Error {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound};
    if !matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput | IsADirectory | NotADirectory | NotFound) {
        FAILURES.set(FAILURES.get().wrapping_add(1));
    }
    error
}

thread_local! {
    /// Number of the system's failures on this thread.
    static FAILURES: Cell<u64> = const { Cell::new(0) };
}

/// Returns whether every user of the machine may read a file.
pub fn readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
}

/// Longest configuration, and longest file with tests of its policies, in bytes.
pub const CONFIGURATION: u64 = 8 << 20;

/// Longest file with certificates or keys, in bytes.
pub const CERTIFICATES: u64 = 4 << 20;

/// Longest file with a secret, in bytes.
pub const SECRET: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_system_is_told_from_a_mistake_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        // The address 0 of a process has no memory, so reading it fails.
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
