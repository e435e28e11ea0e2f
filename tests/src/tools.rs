//! The programs that the tests drive: found where `tools/setup` and `make build` leave them, or made by these if missing.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// Path of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Path of Envoy: the variable `ENVOY`, or what `tools/setup envoy` installed.
pub fn envoy() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        setup("envoy");
        printed("print-envoy")
    })
}

/// Path of the folder with `step` and `step-ca`.
pub fn step_folder() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        setup("step");
        printed("print-path")
    })
}

/// The command `sslscan`.
pub fn sslscan() -> Command {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| setup("scan"));
    Command::new("sslscan")
}

/// A command that runs another one where `docker` builds and runs images without an engine: `tests/containers/sandbox`.
pub fn sandbox() -> Command {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| setup("roots"));
    envoy();
    Command::new(root().join("tests/containers/sandbox"))
}

/// A command that runs another one on a Debian that has booted, with `dist/*.deb`: `tests/containers/machine`.
pub fn machine() -> Command {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        setup("roots");
        setup("packages");
        let status = Command::new(root().join("tools/packages")).env("STEPWARD_COMPRESSION", "1").status().unwrap();
        assert!(status.success(), "`tools/packages` failed");
    });
    envoy();
    Command::new(root().join("tests/containers/machine"))
}

/// Path of `dist/stepward`.
pub fn stepward() -> PathBuf {
    built("stepward")
}

/// Path of `dist/stepward_filter.wasm`.
pub fn filter() -> PathBuf {
    built("stepward_filter.wasm")
}

/// Path of `dist/stepward_filter_trap.wasm`, the filter with the feature `trap`.
pub fn trap_filter() -> PathBuf {
    built("stepward_filter_trap.wasm")
}

fn built(name: &str) -> PathBuf {
    let path = root().join("dist").join(name);
    assert!(path.is_file(), "{} is missing: run `make build`", path.display());
    path
}

fn setup(component: &str) {
    let status = Command::new(root().join("tools/setup")).arg(component).status().unwrap();
    assert!(status.success(), "`tools/setup {component}` failed");
}

fn printed(component: &str) -> PathBuf {
    let output = Command::new(root().join("tools/setup")).arg(component).output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// A free port of 127.0.0.1, never returned twice.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}
