//! `version`, `completions`, `man`: what the shell and the packager ask for.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command};
use serde_json::json;
use settings::{Environment, words::no_such};

use super::exit::Exit;
use super::manual;
use super::output::{Format, OutputArgs};

/// What `version` takes.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Example: stepward version --output json

Exit codes: 0 done, 1 failed, 2 usage.")]
pub struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// What `completions` takes.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Example: stepward completions bash > /usr/share/bash-completion/completions/stepward

Exit codes: 0 done, 1 failed, 2 usage.")]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// What `man` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward man webhook send > page.1 && man ./page.1
  stepward man --dir /usr/share/man/man1          stepward.1, and a page for each command

Exit codes: 0 done, 1 failed, 2 usage.")]
pub struct ManArgs {
    /// The command whose page to print; without it that of the program
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    commands: Vec<String>,
    /// Write every page into this folder, each under the name that the others have for it
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the release.
///
/// # Errors
/// Where it cannot be written.
pub fn version(args: VersionArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    match args.output.output {
        Format::Table => writeln!(out, "stepward {}", env!("CARGO_PKG_VERSION"))?,
        Format::Json => writeln!(out, "{}", json!({ "name": "stepward", "version": env!("CARGO_PKG_VERSION") }))?,
    }
    Ok(Exit::Done)
}

/// Prints completions for a shell of `command`, the whole command line.
///
/// # Errors
/// Where they cannot be written.
pub fn completions(args: CompletionsArgs, mut command: Command, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "stepward", &mut text);
    out.write_all(&text)?;
    Ok(Exit::Done)
}

/// Prints a page of the manual of `command`, the whole command line, or writes all of them.
///
/// # Errors
/// Where there is no such command, or a page cannot be written.
pub fn man(args: &ManArgs, command: Command, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    // `help` has no page: what it says stands in the others.
    let mut command = command.disable_help_subcommand(true);
    if let Some(dir) = &args.dir {
        let dir = environment.directory.join(dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("make the folder {}", dir.display()))?;
        command.build();
        manual::write(&command, &command, &dir).with_context(|| format!("write into {}", dir.display()))?;
        return Ok(Exit::Done);
    }
    command.build();
    let mut page = &command;
    for name in &args.commands {
        let known: Vec<&str> = page.get_subcommands().map(Command::get_name).collect();
        page = page.find_subcommand(name).with_context(|| no_such("command", name, &known))?;
    }
    out.write_all(&manual::page(page, &command)?)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn e12_every_page_of_the_manual_that_is_named_can_be_had() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::new(folder.path());
        let args = |commands: &[&str], dir: Option<&str>| ManArgs {
            commands: commands.iter().map(|name| (*name).to_owned()).collect(),
            dir: dir.map(PathBuf::from),
        };
        man(&args(&[], Some("man1")), Cli::command(), &environment, &mut Vec::new()).unwrap();
        let pages: Vec<_> = std::fs::read_dir(folder.path().join("man1")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let names: BTreeSet<String> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert!(names.contains("stepward.1") && names.contains("stepward-webhook-send.1"), "{names:?}");
        let named = regex::Regex::new(r"(stepward[a-z\\-]*)\(1\)").unwrap();
        let mut seen = 0;
        for page in &pages {
            let text = std::fs::read_to_string(page).unwrap();
            for found in named.captures_iter(&text) {
                let name = format!("{}.1", found[1].replace('\\', ""));
                assert!(names.contains(&name), "{} names {name}", page.display());
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
        let mut printed = Vec::new();
        man(&args(&["webhook", "send"], None), Cli::command(), &environment, &mut printed).unwrap();
        assert_eq!(printed, std::fs::read(folder.path().join("man1/stepward-webhook-send.1")).unwrap());
        assert!(man(&args(&["webhok"], None), Cli::command(), &environment, &mut Vec::new()).is_err());
    }
}
