//! The programs that the tests drive: found where `tools/setup` and `make build` leave them, made by these where they are missing.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Envoy: `ENVOY`, or what `tools/setup envoy` installed.
pub fn envoy() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        setup("envoy");
        printed("print-envoy")
    })
}

/// The folder of `step` and `step-ca`.
pub fn step_folder() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        setup("step");
        printed("print-path")
    })
}

/// `sslscan`.
pub fn sslscan() -> Command {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| setup("scan"));
    Command::new("sslscan")
}

/// A command that runs another one where `docker` builds and plays images without an engine: `tests/containers/sandbox`.
pub fn sandbox() -> Command {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| setup("roots"));
    envoy();
    Command::new(root().join("tests/containers/sandbox"))
}

/// A command that runs another one on a Debian that has booted, where `dist/*.deb` are: `tests/containers/machine`.
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

/// `dist/stepward`.
pub fn stepward() -> PathBuf {
    built("stepward")
}

/// `dist/stepward_filter.wasm`.
pub fn filter() -> PathBuf {
    built("stepward_filter.wasm")
}

/// `dist/stepward_filter_trap.wasm`: the filter with the feature `trap`.
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

/// A port of 127.0.0.1 that nobody listens on, never given twice.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}
