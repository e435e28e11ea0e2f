//! `stepward webhook rotate`: the steps by which a webhook gets another secret while certificates are issued.
//!
//! step-ca changes neither the id nor the secret of a webhook, and has no command for it: a second webhook with an id and a secret
//! of its own takes the place of the first. To remove the first one before the second is asked would leave the provisioner with
//! nobody to ask, so step-ca would sign whatever it is sent; and to have the second one asked before Stepward knows its id would
//! refuse everything. So the second one begins as one of kind NOTIFYING, which is asked of no certificate.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use posture::webhook::Kind;
use serde::Deserialize;

use super::super::{Exit, may_be_printed, shell_word};
use crate::config::{Config, Environment, SecretSource, Webhook};
use crate::files;

/// What `webhook rotate` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  step ca provisioner list | stepward webhook rotate --config stepward.toml
  step ca provisioner list > provisioners.json
  stepward webhook rotate 11111111-2222-4333-8444-555555555555 --provisioners provisioners.json --config stepward.toml

It changes nothing: it prints the commands of step and the lines of the configuration, in the order in which no certificate is
refused and none is issued without a question. What step-ca tells of its provisioners is no secret.

Exit codes: 0 printed, 1 failed, 2 usage.")]
pub struct RotateArgs {
    /// Id of the webhook that is to go; without it the one that step-ca and the configuration both have
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// File with what `step ca provisioner list` printed; without it the standard input
    #[arg(long, value_name = "FILE")]
    provisioners: Option<PathBuf>,
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
}

/// A provisioner, as far as it is needed, in the JSON of step-ca.
#[derive(Debug, Deserialize)]
struct Provisioner {
    name: String,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(default)]
    webhooks: Vec<Hook>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    id: String,
    name: String,
    url: String,
    #[serde(default)]
    cert_type: String,
    #[serde(rename = "disableTLSClientAuth", default)]
    disable_tls_client_auth: bool,
}

/// Prints the steps.
///
/// # Errors
/// Where the configuration or what step-ca told cannot be read, or no webhook stands in both.
pub(super) fn run(args: &RotateArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    let loaded = Config::load(args.config.as_deref(), environment)?;
    let provisioners: Vec<Provisioner> =
        serde_json::from_str(&listed(args, environment)?).context("what was read is not what `step ca provisioner list` prints")?;
    let config = &loaded.config;
    let (webhook, provisioner, hook) = choose(args.id.as_deref(), config, &provisioners)?;
    ensure!(
        !webhook.unsigned,
        "webhook `{}` is unsigned, so there is no secret to replace: keep provisioners in step-ca's database (`enableAdmin`), which gives webhooks secrets",
        webhook.id
    );
    for name in [&provisioner.name, &hook.name, &hook.url] {
        may_be_printed(name)?;
    }
    let file = args.config.clone().or_else(|| environment.variable("STEPWARD_CONFIG").map(PathBuf::from));
    let taken: BTreeSet<&str> = provisioner.options.webhooks.iter().map(|hook| hook.name.as_str()).collect();
    let steps = Steps {
        webhook,
        others: config.webhooks.iter().filter(|other| other.table == webhook.table && other.id != webhook.id).collect(),
        provisioner: &provisioner.name,
        hook,
        name: next(&hook.name, |name| taken.contains(name)),
        folder: loaded.files.first().and_then(|file| file.parent()).unwrap_or(&environment.directory),
        config: file.as_deref(),
    };
    out.write_all(steps.text().as_bytes())?;
    Ok(Exit::Done)
}

fn listed(args: &RotateArgs, environment: &Environment) -> anyhow::Result<String> {
    if let Some(file) = &args.provisioners {
        return files::text(&environment.directory.join(file), files::CONFIGURATION).with_context(|| format!("read {}", file.display()));
    }
    ensure!(
        !io::stdin().is_terminal(),
        "what step-ca has is needed: step ca provisioner list | stepward webhook rotate, or --provisioners FILE with what it printed"
    );
    let mut text = String::new();
    io::stdin().lock().take(files::CONFIGURATION).read_to_string(&mut text).context("read the standard input")?;
    Ok(text)
}

/// The webhook of the configuration, and the same one in step-ca.
fn choose<'c>(
    id: Option<&str>,
    config: &'c Config,
    provisioners: &'c [Provisioner],
) -> anyhow::Result<(&'c Webhook, &'c Provisioner, &'c Hook)> {
    let in_step_ca = |id: &str| {
        let mut hooks =
            provisioners.iter().flat_map(|provisioner| provisioner.options.webhooks.iter().map(move |hook| (provisioner, hook)));
        hooks.find(|(_, hook)| hook.id == id)
    };
    if let Some(id) = id {
        let webhook = config.webhooks.iter().find(|webhook| webhook.id == id);
        let webhook =
            webhook.with_context(|| format!("there is no webhook `{id}` in the configuration; it has {}", ids(config.webhooks.iter())))?;
        let (provisioner, hook) = in_step_ca(id).with_context(|| {
            format!("no provisioner of step-ca has a webhook with the id `{id}`: take it out of the configuration, or see whether this is what the right CA listed")
        })?;
        return Ok((webhook, provisioner, hook));
    }
    let both: Vec<_> = config.webhooks.iter().filter_map(|webhook| in_step_ca(&webhook.id).map(|found| (webhook, found))).collect();
    match both.as_slice() {
        [(webhook, (provisioner, hook))] => Ok((*webhook, *provisioner, *hook)),
        [] => bail!(
            "no webhook of the configuration is one of step-ca's; it has {}: see whether this is what the right CA listed",
            ids(config.webhooks.iter())
        ),
        several => bail!(
            "there are several webhooks: name the one that is to go by its id, one of {}",
            ids(several.iter().map(|(webhook, _)| *webhook))
        ),
    }
}

fn ids<'w>(webhooks: impl Iterator<Item = &'w Webhook>) -> String {
    webhooks.map(|webhook| format!("`{}`", webhook.id)).collect::<Vec<_>>().join(", ")
}

/// A name that is not taken: the same with the next number behind it.
pub(in crate::cli) fn next(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let number = name.strip_prefix(stem).and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(1);
    (number.saturating_add(1)..).map(|number| format!("{stem}{number}")).find(|name| !taken(name)).unwrap_or_default()
}

/// What a template has of a webhook's data.
fn data(name: &str) -> String {
    let is_field = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if is_field { format!(".Webhooks.{name}") } else { format!("(index .Webhooks {})", serde_json::Value::from(name)) }
}

/// What the steps are made of.
struct Steps<'s> {
    /// Which is to go.
    webhook: &'s Webhook,
    /// Those that stand beside it under `ids`.
    others: Vec<&'s Webhook>,
    provisioner: &'s str,
    /// The same webhook in step-ca.
    hook: &'s Hook,
    /// Of the new one in step-ca.
    name: String,
    /// Of the configuration.
    folder: &'s Path,
    /// `None`: variables.
    config: Option<&'s Path>,
}

impl Steps<'_> {
    fn text(&self) -> String {
        let Self { webhook, provisioner, hook, name, .. } = self;
        let (old, id) = (&hook.name, &webhook.id);
        let kind = match webhook.kind {
            Kind::Enriching => "ENRICHING",
            Kind::Authorizing => "AUTHORIZING",
            Kind::ScepChallenge => "SCEPCHALLENGE",
            Kind::Notifying => NOTIFYING,
        };
        let [p, o, n, url] = [*provisioner, old.as_str(), name.as_str(), hook.url.as_str()].map(shell_word);
        let options = self.options();
        let (secret, printed) = (self.new_secret(), shell_word(&self.folder.join(format!("webhook-{name}")).display().to_string()));
        let secret_file = shell_word(&secret.display().to_string());
        let config = self.config.map(|file| format!(" --config {}", shell_word(&file.display().to_string()))).unwrap_or_default();
        let take_effect = if self.config.is_some() {
            format!("stepward check-config{config}\nstepward reload{config}\n")
        } else {
            "# Variables of a .env file are read again by `stepward reload`; those of the service itself when it is started again.\nstepward check-config\nstepward reload\n".to_owned()
        };
        let mut text = format!(
            "# Webhook {id}, `{old}` of the provisioner `{provisioner}`, gets another secret while certificates are issued.\n\
             # step-ca changes no secret, so a second webhook, `{name}`, takes its place. Keep the order: a provisioner without a webhook\n\
             # asks nobody and signs everything, and one with a webhook that Stepward does not know yet gets nothing signed.\n\
             \n\
             # 1. Add the second webhook. As one of kind NOTIFYING it is asked of no certificate yet.\n\
             (umask 077\n\
             step ca provisioner webhook add {p} {n} --kind {NOTIFYING} --url {url}{options} > {printed}\n\
             sed -n 's/^Secret: //p' {printed} > {secret_file})\n\
             sed -n 's/^Webhook ID: //p' {printed}\n\
             \n"
        );
        self.both(&mut text, &secret);
        text += &take_effect;
        if webhook.kind == Kind::Enriching {
            let (was, becomes) = (data(old), data(name));
            // Writing to a text does not fail.
            let _ = write!(
                text,
                "\n\
                 # 3. Let the template take the data of either, where it has `{was}`: begin it with the line below, and write\n\
                 # `$posture` for `{was}`. Then give it to the provisioner; for SSH it is --ssh-template.\n\
                 #\n\
                 #    {{{{- $posture := coalesce {becomes} {was} | default dict -}}}}\n\
                 #\n\
                 step ca provisioner update {p} --x509-template TEMPLATE_FILE\n"
            );
        }
        let mut number = if webhook.kind == Kind::Enriching { 4 } else { 3 };
        if webhook.kind != Kind::Notifying {
            let _ = write!(
                text,
                "\n\
                 # {number}. Have both asked. Go on once a certificate was issued: the last command has to list the new id.\n\
                 step ca provisioner webhook update {p} {n} --kind {kind}{options}\n\
                 stepward decisions --webhook NEW_ID --since 5m{config}\n"
            );
            number += 1;
        }
        let _ = write!(
            text,
            "\n\
             # {number}. Have the first one asked no more.\n\
             step ca provisioner webhook remove {p} {o}\n"
        );
        self.one(&mut text, number + 1, &secret);
        text += &take_effect;
        let gone = webhook.secrets.iter().filter_map(|source| if let SecretSource::File(file) = source { Some(file) } else { None });
        let gone: String = gone.map(|file| format!(" {}", shell_word(&file.display().to_string()))).collect();
        let _ = writeln!(text, "rm{gone} {printed}");
        text
    }

    /// What the second webhook has in common with the first, besides kind and URL.
    fn options(&self) -> String {
        let mut options = String::new();
        if !matches!(self.hook.cert_type.as_str(), "" | "ALL") {
            options += &format!(" --cert-type {}", shell_word(&self.hook.cert_type));
        }
        if self.hook.disable_tls_client_auth {
            options += " --disable-tls-client-auth";
        }
        let file = |source: &SecretSource| match source {
            SecretSource::File(file) => shell_word(&file.display().to_string()),
            SecretSource::Env(_) | SecretSource::Inline { .. } => "FILE".to_owned(),
        };
        if let Some(bearer) = self.webhook.bearer.first() {
            options += &format!(" --bearer-token-file {}", file(bearer));
        } else if let Some(basic) = self.webhook.basic.first() {
            options +=
                &format!(" --basic-auth-username {} --basic-auth-password-file {}", shell_word(&basic.username), file(&basic.password));
        }
        options
    }

    /// The file of the new secret: beside the old one, where that is a file.
    fn new_secret(&self) -> PathBuf {
        let old =
            self.webhook.secrets.iter().find_map(|source| if let SecretSource::File(file) = source { Some(file.as_path()) } else { None });
        let (folder, name) = match old {
            Some(old) => (old.parent().unwrap_or(self.folder), old.file_name().unwrap_or_default().to_string_lossy().into_owned()),
            None => (self.folder, format!("webhook-{}-secret", self.hook.name)),
        };
        folder.join(next(&name, |name| folder.join(name).exists()))
    }

    /// Step 2: both ids.
    fn both(&self, text: &mut String, secret: &Path) {
        if self.config.is_none() {
            *text += "# 2. Add the id that was printed to WEBHOOK_IDS and its secret to WEBHOOK_SECRETS, each behind a comma, in the same place.\n";
            return;
        }
        let old = |webhook: &&Webhook| {
            let source = webhook.secrets.first().map_or_else(String::new, |source| self.source(source));
            format!("#      {{ id = \"{}\", secret = {source} }},\n", webhook.id)
        };
        let known: String = [&self.webhook].into_iter().chain(&self.others).map(old).collect();
        let at = if self.others.is_empty() { "in the place of `id` and `secrets`" } else { "in the place of `ids`" };
        let several = if self.webhook.secrets.len() > 1 { "; of several `secrets` the one that step-ca signs with stays" } else { "" };
        *text += &format!(
            "# 2. Tell Stepward: in the [[webhook]] of {id}, write this {at}, with the id that was printed for NEW_ID{several}.\n\
             #\n\
             #    ids = [\n\
             #      {{ id = \"NEW_ID\", secret = {new} }},\n\
             {known}\
             #    ]\n\
             #\n",
            id = self.webhook.id,
            new = self.source(&SecretSource::File(secret.to_owned())),
        );
    }

    /// The last step: the new id without the old one.
    fn one(&self, text: &mut String, number: u32, secret: &Path) {
        let _ = write!(text, "\n# {number}. After a minute, when nothing is under way by it, take the old id away");
        if self.config.is_none() {
            *text += ": out of WEBHOOK_IDS, and its secret out of WEBHOOK_SECRETS.\n";
            return;
        }
        if self.others.is_empty() {
            let _ = write!(
                text,
                ": write this in the place of `ids`.\n#\n#    id = \"NEW_ID\"\n#    secrets = [{}]\n#\n",
                self.source(&SecretSource::File(secret.to_owned()))
            );
        } else {
            *text += ": its line in `ids`.\n";
        }
    }

    /// Where a secret is, in TOML, relative to the configuration's folder where it is below that.
    fn source(&self, source: &SecretSource) -> String {
        let text = |text: &str| toml::Value::from(text).to_string();
        match source {
            SecretSource::File(file) => {
                format!("{{ file = {} }}", text(&file.strip_prefix(self.folder).unwrap_or(file).display().to_string()))
            }
            SecretSource::Env(name) => format!("{{ env = {} }}", text(name)),
            SecretSource::Inline { from, .. } => format!("{{ env = {} }}", text(from)),
        }
    }
}

/// A kind that no certificate is asked for with; step-ca ignores what is answered to it.
const NOTIFYING: &str = "NOTIFYING";

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "[envoy]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"\n";
    const REST: &str = "callers = [\"dns:ca\"]\nproviders = [\"staff\"]\n[provider.staff]\ntype = \"file\"\npath = \"d.csv\"\n";

    /// What is printed for a webhook of these lines, where step-ca has the webhooks `old`, and whatever else is listed.
    fn printed(lines: &str, id: Option<&str>, more: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let list = format!(
            r#"[{{"name": "it's", "options": {{"webhooks": [{{"id": "old", "name": "posture", "url": "https://a:9443/webhook/d", "kind": "ENRICHING", "certType": "SSH"}}{more}]}}}}, {{"name": "bare", "type": "ACME"}}]"#
        );
        std::fs::write(folder.path().join("list.json"), list).unwrap();
        std::fs::write(folder.path().join("s.toml"), format!("{BEGIN}[[webhook]]\n{lines}\n{REST}")).unwrap();
        let args = RotateArgs { id: id.map(str::to_owned), provisioners: Some("list.json".into()), config: Some("s.toml".into()) };
        let mut out = Vec::new();
        let result = run(&args, &Environment::new(folder.path()), &mut out).map_err(|error| format!("{error:#}"));
        result.map(|_| String::from_utf8(out).unwrap().replace(&format!("{}/", folder.path().display()), ""))
    }

    const ONE: &str = "id = \"old\"\nsecrets = [{ file = \"secrets/laptops\" }]\nbearer = [{ file = \"secrets/token\" }]";

    #[test]
    fn e4_the_second_webhook_is_asked_once_stepward_knows_it_and_the_first_is_removed_after_that() {
        let text = printed(ONE, None, "").unwrap();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in {text}"));
        let order = [
            r"step ca provisioner webhook add 'it'\''s' posture2 --kind NOTIFYING --url https://a:9443/webhook/d --cert-type SSH --bearer-token-file secrets/token > webhook-posture2",
            "sed -n 's/^Secret: //p' webhook-posture2 > secrets/laptops2)",
            "#    ids = [\n#      { id = \"NEW_ID\", secret = { file = \"secrets/laptops2\" } },\n#      { id = \"old\", secret = { file = \"secrets/laptops\" } },\n#    ]\n",
            "stepward reload --config s.toml\n",
            "#    {{- $posture := coalesce .Webhooks.posture2 .Webhooks.posture | default dict -}}\n",
            r"step ca provisioner webhook update 'it'\''s' posture2 --kind ENRICHING --cert-type SSH --bearer-token-file secrets/token",
            r"step ca provisioner webhook remove 'it'\''s' posture",
            "#    id = \"NEW_ID\"\n#    secrets = [{ file = \"secrets/laptops2\" }]\n",
            "rm secrets/laptops webhook-posture2\n",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
        assert!(!text.contains("secret = \"") && text.matches("\n# ").count() > 6);
    }

    #[test]
    fn e4_each_kind_has_the_steps_that_it_needs() {
        let text = printed(&format!("{ONE}\nkind = \"authorizing\""), None, "").unwrap();
        assert!(text.contains("--kind AUTHORIZING") && !text.contains("template") && text.contains("# 5. After a minute"), "{text}");
        let notifying = format!("{ONE}\nkind = \"notifying\"");
        let text = printed(&notifying, None, "").unwrap();
        assert!(!text.contains("webhook update") && text.contains("# 4. After a minute"), "{text}");
        // A third id, as where a rotation was not ended: the others stay.
        let several = "ids = [{ id = \"next\", secret = { env = \"A\" } }, { id = \"old\", secret = { file = \"secrets/w9\" } }]";
        let text = printed(several, Some("old"), "").unwrap();
        assert!(text.contains("in the place of `ids`") && text.contains("{ id = \"next\", secret = { env = \"A\" } },"), "{text}");
        assert!(text.contains("secrets/w10") && text.contains("its line in `ids`"), "{text}");
    }

    #[test]
    fn e4_what_cannot_be_rotated_is_said_with_what_to_do() {
        for (lines, id, more, said) in [
            (ONE, Some("other"), "", "there is no webhook `other` in the configuration; it has `old`"),
            ("id = \"mine\"\nsecrets = [{ env = \"A\" }]", None, "", "no webhook of the configuration is one of step-ca's; it has `mine`"),
            ("id = \"mine\"\nsecrets = [{ env = \"A\" }]", Some("mine"), "", "no provisioner of step-ca has a webhook with the id `mine`"),
            ("id = \"old\"\nunsigned = true", None, "", "webhook `old` is unsigned"),
            (
                "ids = [{ id = \"old\", secret = { env = \"A\" } }, { id = \"new\", secret = { env = \"B\" } }]",
                None,
                r#", {"id": "new", "name": "posture2", "url": "https://a/webhook/d"}"#,
                "name the one that is to go by its id, one of `old`, `new`",
            ),
            (
                "id = \"odd\"\nsecrets = [{ env = \"A\" }]",
                None,
                r#", {"id": "odd", "name": "posture\ntouch here #", "url": "https://a/webhook/d"}"#,
                "`posture\\u000atouch here #` of step-ca cannot stand in a command",
            ),
            (
                "id = \"odd\"\nsecrets = [{ env = \"A\" }]",
                None,
                r#", {"id": "odd", "name": "-f", "url": "https://a/webhook/d"}"#,
                "`-f` of step-ca cannot stand in a command",
            ),
            (ONE, None, "}", "is not what `step ca provisioner list` prints"),
        ] {
            let error = printed(lines, id, more).unwrap_err();
            assert!(error.contains(said), "{said}: {error}");
        }
    }

    #[test]
    fn the_next_name_counts_on_and_is_a_field_of_a_template_where_it_can_be() {
        assert_eq!(next("posture", |_| false), "posture2");
        assert_eq!(next("posture2", |name| name == "posture3"), "posture4");
        assert_eq!(next("99999999999", |_| false), "2", "what is no number of ours is counted anew");
        assert_eq!((data("posture2"), data("my-hook")), (".Webhooks.posture2".to_owned(), "(index .Webhooks \"my-hook\")".to_owned()));
    }
}
