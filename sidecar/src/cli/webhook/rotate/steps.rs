//! The steps of a rotation, as text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use posture::webhook::Kind;
use settings::SecretSource;

use super::choose::Hook;
use super::place::{Place, Shut, shut};
use crate::cli::pasted::shell_word;
use engine::webhooks::Settings;

/// Returns the expression by which a template reads a webhook's data.
pub(super) fn data(name: &str) -> String {
    let is_field = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if is_field { format!(".Webhooks.{name}") } else { format!("(index .Webhooks {})", serde_json::Value::from(name)) }
}

/// Parts that the steps are made of.
pub(super) struct Steps<'s> {
    /// Webhook that is to go.
    pub(super) webhook: &'s Settings,
    /// Places of its secrets, as far as they are in files.
    pub(super) old: Vec<Place>,
    /// Place of the new secret.
    pub(super) new: Place,
    /// Webhooks that stand beside it under `ids`.
    pub(super) others: Vec<&'s Settings>,
    pub(super) provisioner: &'s str,
    /// The same webhook in step-ca.
    pub(super) hook: &'s Hook,
    /// Name of the new webhook in step-ca.
    pub(super) name: String,
    /// Folder of the configuration.
    pub(super) folder: &'s Path,
    /// File of the configuration; `None`: the service is configured by variables.
    pub(super) config: Option<&'s Path>,
}

impl Steps<'_> {
    /// Returns the steps, as lines for a shell with comments between.
    pub(super) fn text(&self) -> String {
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
        // The service's folders may not exist where step runs, or may not be writable there.
        let shut_off = self.new.shut();
        let printed = PathBuf::from(format!("webhook-{name}.printed"));
        let printed = quoted(&if shut(self.folder).is_some() { printed } else { self.folder.join(printed) });
        let new_name = Path::new(self.new.file.file_name().unwrap_or_default());
        let secret_file = quoted(if shut_off.is_some() { new_name } else { &self.new.file });
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
             {apart}\
             \n\
             # 1. Add the second webhook. As one of kind NOTIFYING it is asked of no certificate yet.\n\
             (umask 077\n\
             step ca provisioner webhook add {p} {n} --kind {NOTIFYING} --url {url}{options} > {printed}\n\
             sed -n 's/^Secret: //p' {printed} > {secret_file})\n\
             sed -n 's/^Webhook ID: //p' {printed}\n\
             {handed}\
             \n",
            apart = if shut_off.is_some() { APART } else { "" },
            handed = self.handed(&secret_file, shut_off),
        );
        self.both(&mut text, &self.new.configured);
        text += &take_effect;
        if webhook.kind == Kind::Enriching {
            self.template(&mut text, &p);
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
        self.one(&mut text, number + 1, &self.new.configured);
        text += &take_effect;
        self.clean(&mut text, &printed, &secret_file, shut_off);
        text
    }

    /// Writes step 3 of an enriching webhook: the template takes the data of either.
    fn template(&self, text: &mut String, p: &str) {
        let (was, becomes) = (data(&self.hook.name), data(&self.name));
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

    /// Writes the end of the last step: the removal of files that are of no use any more.
    fn clean(&self, text: &mut String, printed: &str, secret_file: &str, shut_off: Option<Shut>) {
        let gone: String = self.old.iter().map(|old| format!(" {}", quoted(&old.file))).collect();
        if shut_off.is_some() {
            let _ = writeln!(text, "rm {printed} {secret_file}");
            if !gone.is_empty() {
                let _ = writeln!(text, "# and, from where the service has its secrets: rm{gone}");
            }
        } else {
            let _ = writeln!(text, "rm{gone} {printed}");
        }
    }

    /// Returns the options that the second webhook has in common with the first, besides kind and URL.
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

    /// Returns the steps by which the service gets the new secret.
    fn handed(&self, written: &str, shut_off: Option<Shut>) -> String {
        let Place { file, unit, .. } = &self.new;
        let folder = file.parent().unwrap_or(file);
        let mut text = shut_off.map(|shut_off| shut_off.said(folder, written)).unwrap_or_default();
        let Some(unit) = unit else { return text };
        if let Some(name) = &unit.encrypted {
            let shown = shell_word(&file.display().to_string());
            let _ = writeln!(
                text,
                "# It is kept encrypted there: systemd-creds encrypt --name={name} {written} ENCRYPTED, then mv ENCRYPTED {shown}"
            );
        }
        if let Some(setting) = &unit.setting {
            let _ = write!(text, "# Have it loaded, under [Service] in `systemctl edit {}`:\n#\n#    {setting}\n#\n", unit.name);
        }
        let _ = write!(
            text,
            "# systemd hands the service its secrets when it starts, and no reload changes them.\nsystemctl restart {}\n",
            shell_word(&unit.name)
        );
        text
    }

    /// Writes step 2: both ids.
    fn both(&self, text: &mut String, secret: &Path) {
        if self.config.is_none() {
            *text += "# 2. Add the id that was printed to WEBHOOK_IDS and its secret to WEBHOOK_SECRETS, each behind a comma, in the same place.\n";
            return;
        }
        let old = |webhook: &&Settings| {
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

    /// Writes the last step: the new id without the old one.
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

    /// Returns where a secret is, in TOML, relative to the configuration's folder where it is below that.
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

/// Returns a path quoted, where it has to be, so that a POSIX shell takes it for one word.
fn quoted(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Note for folders of the service that cannot be written to from where step runs, as in a container.
const APART: &str = "# `step` runs where an administrator of the CA is, and `stepward` where the service is: with Compose behind\n\
                     # `docker compose exec step-ca` and `docker compose exec stepward`. Files that step writes are where step runs.\n";

/// Kind of webhook that step-ca asks of no certificate; step-ca ignores what is answered to it.
const NOTIFYING: &str = "NOTIFYING";
