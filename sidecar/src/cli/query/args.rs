//! Arguments of `stepward query`, and the words that its answers share.

use std::path::PathBuf;

use clap::Args;
use posture::identity::IdentifierKind;
use proto::v1::ProviderAnswer;

use crate::cli::output::OutputArgs;

/// What `query` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward query C02XL0GYJGH5 --config stepward.toml                                what each provider knows
  stepward query laptop.example.org --kind hostname --socket run/query.sock --output json
  stepward query C02XL0GYJGH5 --policy staff-mac --explain --config stepward.toml    what a policy says, and why
  stepward query - --policy staff-mac --config stepward.toml < serials.txt           for one device a line, 1,000 at most
  stepward query C02XL0GYJGH5 PF3ABCDE --policy staff-mac --watch --config stepward.toml

Exit codes: 0 found, or all allowed, 1 failed, or with --watch refused to go on, 2 usage, 3 no provider has it, or one is denied,
5 a provider could not say, or with --watch the service ended.")]
pub struct QueryArgs {
    /// The device's identifier; with --policy there may be several, and `-` reads them from the standard input
    #[arg(value_name = "DEVICE", required = true)]
    pub(super) devices: Vec<String>,
    /// What the identifier is: serial, udid, yubico, tpm, hostname, email [default: serial, and without --policy, where no
    /// provider is asked by that, what one is asked by]
    #[arg(long)]
    pub(super) kind: Option<String>,
    /// Ask what this policy says of the device, instead of what providers know
    #[arg(long, value_name = "NAME")]
    pub(super) policy: Option<String>,
    /// Show every check, and what each provider said
    #[arg(long, requires = "policy")]
    pub(super) explain: bool,
    /// Go on, and print a line whenever the policy says something else
    #[arg(long, requires = "policy", conflicts_with = "explain")]
    pub(crate) watch: bool,
    /// Ask this provider only; may be repeated
    #[arg(long, conflicts_with = "policy")]
    pub(super) provider: Vec<String>,
    /// Configuration file, for the folder of the sockets
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The socket, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// Kind of an identifier where the command line names none.
pub(super) const SERIAL: &str = IdentifierKind::Serial.as_str();

/// Returns the outcome of one provider's answer in a word: `not_found`.
pub(super) fn outcome(answer: &ProviderAnswer) -> String {
    answer.outcome().as_str_name().trim_start_matches("OUTCOME_").to_ascii_lowercase()
}
