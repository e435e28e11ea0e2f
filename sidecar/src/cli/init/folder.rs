//! Folder that `stepward init` makes: its files, the filter that it names, and the program that is called in it.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use settings::Environment;

use super::args::InitArgs;

/// Checks that none of these files is there.
///
/// # Errors
/// The first file that exists.
pub(super) fn exists(files: &[PathBuf]) -> anyhow::Result<()> {
    match files.iter().find(|path| path.exists()) {
        Some(path) => bail!("{} is there already; nothing was written", path.display()),
        None => Ok(()),
    }
}

/// Returns the absolute path of the filter that the configuration is to name; `None` where none was given or found.
pub(super) fn wasm(args: &InitArgs, environment: &Environment) -> Option<PathBuf> {
    if let Some(given) = &args.wasm {
        return Some(environment.directory.join(given));
    }
    let beside = environment.executable.as_deref().and_then(Path::parent).map(|folder| folder.join(WASM));
    let built = environment.directory.join("dist").join(WASM);
    beside.into_iter().chain([built]).find(|file| file.is_file())
}

/// Returns the command by which this program is called from the working directory.
pub(super) fn program(environment: &Environment) -> PathBuf {
    let Some(executable) = &environment.executable else { return "stepward".into() };
    let mut folders = environment.variable("PATH").into_iter().flat_map(std::env::split_paths);
    let called = |file: PathBuf| file.canonicalize().is_ok_and(|file| file == *executable);
    if executable.file_name().is_some_and(|name| folders.any(|folder| called(folder.join(name)))) {
        return executable.file_name().map(PathBuf::from).unwrap_or_default();
    }
    match executable.strip_prefix(&environment.directory) {
        // A bare name would be looked up in PATH.
        Ok(relative) => Path::new(".").join(relative),
        Err(_) => executable.clone(),
    }
}

/// Returns the line of the configuration that names the filter, or the comment in its place.
///
/// # Errors
/// Where the path is not UTF-8.
pub(super) fn found(wasm: Option<&Path>) -> anyhow::Result<String> {
    Ok(match wasm {
        Some(file) => format!("wasm = {}", toml::Value::from(file.to_str().context("the path of the filter is not UTF-8")?)),
        None => format!("# {WASM} was found neither beside stepward nor in dist/: say where it is.\n# wasm = \"/usr/lib/stepward/{WASM}\""),
    })
}

/// Writes a new file with this mode, and makes the folders that it is in.
///
/// # Errors
/// Where the file is there already, or cannot be written.
pub(super) fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        // Nobody else may write to the folder, whatever the umask: who can write to a folder can replace what is in it.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("make the folder {}", folder.display()))?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// File name of the filter, as a build has it.
pub(super) const WASM: &str = "stepward_filter.wasm";
