//! `stepward envoy-config`: a complete bootstrap for Envoy, made of the templates in `envoy/`.

mod admin;
mod bootstrap;
mod disk;
mod template;
#[cfg(test)]
mod tests;
mod unusable;

pub use admin::Admin;
pub use bootstrap::{HEAP, Options, Rendered, render};
pub use unusable::Unusable;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use settings::Environment;

use crate::config::Config;
use bootstrap::{mebibytes, names, takes_events};
use disk::{readable, replace, spare};
use template::folder;

/// Print a complete Envoy bootstrap for this configuration
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward envoy-config --config stepward.toml --output envoy.yaml
  envoy -c envoy.yaml --concurrency 2

The certificate, its key and the client authority reach Envoy by small files, written into --sds-dir, so that Envoy takes
new ones without a restart: rename them into their folder. Limits of its access log are beside them. Where there is a mistake,
nothing is written or printed. Run it as Envoy's user: a key that this user may not read, or that is another certificate's, is one.

Exit codes: 0 written, 1 mistakes in the configuration, what Envoy could not run with, or a file that cannot be written,
2 usage.")]
pub struct EnvoyConfigArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Write the bootstrap into FILE instead of the standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Folder of the SDS files [default: `sds` beside --output, else `sds` in the folder of the sockets]
    #[arg(long, value_name = "DIR")]
    pub sds_dir: Option<PathBuf>,
    /// Open Envoy's admin interface: 127.0.0.1:9901 or `[::1]:9901` (never a public address), or the path of a socket with a
    /// slash in it, as ./envoy.sock [default: `envoy-admin.sock` beside the folder of the SDS files, for Envoy's user alone: its
    /// listener for statistics, `stats_address`, calls it; none where that is off]
    #[arg(long, value_name = "ADDRESS|PATH")]
    pub admin: Option<String>,
    /// Let Envoy end the handshake of everybody whom no webhook names in `callers`, so that other certificates of the same
    /// authority hold no connection, or fail where that cannot be told [default: where every webhook has `callers`, none by
    /// `sha256:`]. Call it again when `callers` change: Envoy takes the new names without a restart
    #[arg(long)]
    pub only_callers: bool,
    /// Let every certificate of the client authority finish its handshake: the filter alone looks for `callers`
    #[arg(long, conflicts_with = "only_callers")]
    pub any_certificate: bool,
    /// Memory in MiB that Envoy takes for connections and requests before it refuses them: half of what it may have in all,
    /// since the filter, TLS and Envoy itself come on top
    #[arg(long, value_name = "MIB", default_value_t = HEAP, value_parser = clap::value_parser!(u32).range(128..=1_048_576))]
    pub heap: u32,
}

/// Reads the configuration, writes the SDS files, and prints the bootstrap or writes it; warnings go to the standard error.
///
/// # Errors
/// The mistakes of the configuration, or a file that cannot be written.
pub fn run(
    args: &EnvoyConfigArgs,
    env: &Environment,
    stdout: &mut dyn std::io::Write,
    stderr: &mut dyn std::io::Write,
) -> anyhow::Result<()> {
    if let Some(form) = args.output.as_deref().and_then(Path::to_str).filter(|name| FORMS.contains(name)) {
        return Err(Unusable::IsAForm(form.to_owned()).into());
    }
    let loaded = Config::load(args.config.as_deref(), env)?;
    for warning in &loaded.warnings {
        writeln!(stderr, "warning: {warning}")?;
    }
    let sds = match (&args.sds_dir, &args.output) {
        (Some(folder), _) => env.directory.join(folder),
        (None, Some(output)) => env.directory.join(output).parent().map_or_else(|| env.directory.join("sds"), |folder| folder.join("sds")),
        (None, None) => loaded.config.listen.sockets.join("sds"),
    };
    let admin = args.admin.as_deref().map(|admin| Admin::parse(admin, &env.directory)).transpose()?;
    let only_callers = match names(&loaded.config) {
        Err(_) if !args.only_callers && loaded.config.envoy.client_ca.is_none() => false,
        Err(why) if !args.only_callers => {
            writeln!(stderr, "warning: {why}, so whoever has a certificate of client_ca can hold connections that step-ca needs")?;
            false
        }
        _ => !args.any_certificate,
    };
    let admin = admin.or_else(|| loaded.config.envoy.stats_address.map(|_| Admin::Socket(folder(&sds).join(ADMIN_SOCKET))));
    if loaded.config.envoy.sidecars.is_some() && takes_events(&loaded.config) {
        let socket = loaded.config.listen.socket("push");
        writeln!(stderr, "warning: events of device managements go to {} alone, and to none of `sidecars`", socket.display())?;
    }
    let options = Options { admin, heap: mebibytes(args.heap), only_callers, ..Options::new(&sds) };
    let rendered = render(&loaded.config, &options)?;
    let output = args.output.as_ref().map(|output| env.directory.join(output));
    spare(&loaded, output.as_deref(), &rendered, options.admin.as_ref())?;
    for warning in readable(&loaded.config)? {
        writeln!(stderr, "warning: {warning}")?;
    }
    std::fs::create_dir_all(&sds).with_context(|| format!("make the folder {}", sds.display()))?;
    for (path, text) in &rendered.sds {
        replace(path, text)?;
    }
    match output {
        Some(output) => replace(&output, &rendered.bootstrap),
        None => {
            if args.sds_dir.is_none() {
                writeln!(stderr, "note: the files that it names were written into {}; --sds-dir names another folder", sds.display())?;
            }
            stdout.write_all(rendered.bootstrap.as_bytes()).context("write the bootstrap")
        }
    }
}

/// Forms of output that other commands take by `--output`.
const FORMS: &[&str] = &["json", "table", "yaml", "text"];

/// The socket of Envoy's admin interface, where nobody asked for another one: only the listener for statistics calls it.
const ADMIN_SOCKET: &str = "envoy-admin.sock";
