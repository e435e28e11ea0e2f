//! Arguments of `stepward init`.

use std::path::PathBuf;

use clap::Args;
use reqwest::Url;

use super::fingerprint::Fingerprint;

/// What `init` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward init demo && stepward serve --config demo/stepward.toml
  stepward init stepward --step-ca https://ca.example.org:8443 --fingerprint 7070b2… --url https://stepward.example.org:9443/webhook/device
  stepward init stepward --step-ca https://ca.example.org:8443 --root root_ca.crt --provisioner devices --url https://…

It overwrites nothing. Without --step-ca the certificates are for trying out: their authority's key stays in the folder. With it
the folder fits that CA: its authorities, the name that it calls by, and how a device of the provisioner is identified; what is
left to do in the CA is printed. Nothing in the CA is changed.
Exit codes: 0 made, 1 something is in the way, 2 usage.")]
pub struct InitArgs {
    /// The folder
    pub(super) dir: PathBuf,
    /// The filter that the configuration names; without it stepward_filter.wasm beside this program, else in dist/
    #[arg(long, value_name = "FILE")]
    pub(super) wasm: Option<PathBuf>,
    /// Address of a step-ca that the folder is to fit
    #[arg(long, value_name = "URL")]
    pub(crate) step_ca: Option<Url>,
    /// SHA-256 of its root, as `step certificate fingerprint root_ca.crt` prints it
    #[arg(long, value_name = "HEX", requires = "step_ca")]
    pub(super) fingerprint: Option<Fingerprint>,
    /// Its root, PEM, instead of the fingerprint or besides
    #[arg(long, value_name = "FILE", requires = "step_ca")]
    pub(super) root: Option<PathBuf>,
    /// Its provisioner that is to ask; without it the one that attests devices, or a new one
    #[arg(long, value_name = "NAME", requires = "step_ca")]
    pub(super) provisioner: Option<String>,
    /// Where it reaches Envoy; without it https://localhost:9443/webhook/device, for a CA on this machine
    #[arg(long, value_name = "URL", requires = "step_ca")]
    pub(super) url: Option<Url>,
}

#[cfg(test)]
impl InitArgs {
    /// Makes the arguments of a command line with a folder and a filter alone.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, wasm: Some("filter.wasm".into()), step_ca: None, fingerprint: None, root: None, provisioner: None, url: None }
    }
}
