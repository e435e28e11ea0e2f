//! `version`, `completions`, `man`: what the shell and the packager ask for.

use std::io::Write;

use clap::{Args, CommandFactory as _};
use serde_json::json;

use super::{Cli, Exit, OutputArgs};

/// What `version` takes.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Example: stepward version --output json

Exit codes: 0 done, 2 usage.")]
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
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "Example: stepward man > stepward.1 && man ./stepward.1

Exit codes: 0 done, 1 failed, 2 usage.")]
pub struct ManArgs {}

/// Prints the release.
///
/// # Errors
/// Where it cannot be written.
pub fn version(args: VersionArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    match args.output.output {
        super::Format::Table => writeln!(out, "stepward {}", env!("CARGO_PKG_VERSION"))?,
        super::Format::Json => writeln!(out, "{}", json!({ "name": "stepward", "version": env!("CARGO_PKG_VERSION") }))?,
    }
    Ok(Exit::Done)
}

/// Prints completions.
///
/// # Errors
/// Where they cannot be written.
pub fn completions(args: CompletionsArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stepward", &mut text);
    out.write_all(&text)?;
    Ok(Exit::Done)
}

/// Prints the manual: the page of the program, then one for each command.
///
/// # Errors
/// Where it cannot be written.
pub fn man(out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        clap_mangen::Man::new(sub.clone()).render(out)?;
    }
    Ok(Exit::Done)
}
