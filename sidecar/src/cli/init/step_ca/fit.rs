//! Fitting of a webhook to a provisioner, so that it identifies a device.

use anyhow::{Context as _, bail};
use posture::shown;

use super::ca::Provisioner;
use crate::cli::pasted::{may_be_printed, next_name, shell_word};

/// A provisioner, with the lines of the configuration by which a webhook of it identifies a device.
#[derive(Debug, Default)]
pub(super) struct Fit {
    pub(super) name: String,
    pub(super) webhook: String,
    /// Lines of `[[webhook]]` about the device's identity.
    pub(super) identity: String,
    /// Line of the provider about its identifiers.
    pub(super) identifier: String,
    /// Commands that have to be run on the provisioner first.
    pub(super) commands: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Fit {
    /// Chooses the provisioner of this name, or without one the only one that attests devices, and fits a webhook to it.
    ///
    /// # Errors
    /// Where there is no such provisioner, there are several, or nothing identifies a device by its type.
    pub(super) fn choose(named: Option<&str>, all: &[Provisioner]) -> anyhow::Result<Self> {
        let listed =
            || all.iter().map(|one| format!("`{}` ({})", shown::cell(&one.name), shown::cell(&one.of_type))).collect::<Vec<_>>().join(", ");
        let attesting: Vec<&Provisioner> = all.iter().filter(|one| one.attests()).collect();
        match (named, attesting.as_slice()) {
            (Some(name), _) => match all.iter().find(|one| one.name == name) {
                Some(one) => Self::of(one),
                None => bail!(
                    "the CA has no provisioner `{name}`; it has {}: name one of them, or add it by `step ca provisioner add`",
                    listed()
                ),
            },
            (None, [one]) => Self::of(one),
            (None, []) => Ok(Self {
                name: "devices".to_owned(),
                webhook: WEBHOOK.to_owned(),
                commands: vec![
                    "step ca provisioner add devices --type ACME --challenge device-attest-01 --attestation-format apple --disable-renewal"
                        .to_owned(),
                ],
                ..Self::default()
            }),
            (None, _) => bail!("several provisioners of the CA attest devices: name one by --provisioner; it has {}", listed()),
        }
    }

    /// Fits a webhook to a provisioner, by its type.
    fn of(provisioner: &Provisioner) -> anyhow::Result<Self> {
        let name = &provisioner.name;
        may_be_printed(name)?;
        let taken = |name: &str| provisioner.options.webhooks.iter().any(|hook| hook.name == name);
        let webhook = if taken(WEBHOOK) { next_name(WEBHOOK, taken) } else { WEBHOOK.to_owned() };
        let mut fit = Self { name: name.clone(), webhook, ..Self::default() };
        let hostname = "identifier = \"hostname\"\n";
        let mut named = |identity: &str, field: &str| {
            fit.identity = format!("identity = \"{identity}\"\nidentity_field = \"{field}\"\n{hostname}");
            fit.identifier = hostname.to_owned();
        };
        match provisioner.of_type.as_str() {
            "ACME" if provisioner.attests() => fit.attest(provisioner)?,
            "ACME" => named("claimed", "san.dns"),
            "JWK" | "OIDC" => named("claimed", "subject.cn"),
            "X5C" => named("certificate", "subject.cn"),
            "AWS" | "GCP" | "Azure" => fit.identity = "identity = \"principal\"\n".to_owned(),
            other => bail!(
                "provisioner `{name}` is of the type {}, which Stepward has no way to identify devices by: name one of ACME, JWK, OIDC, X5C, AWS, GCP or Azure by --provisioner",
                shown::cell(other)
            ),
        }
        if !provisioner.claims.disable_renewal {
            fit.commands.push(format!("step ca provisioner update {} --disable-renewal", shell_word(name)));
            fit.notes.push(format!("step-ca asks no webhook when it renews, so renewals of `{name}` are switched off below."));
        }
        Ok(fit)
    }

    fn attest(&mut self, provisioner: &Provisioner) -> anyhow::Result<()> {
        let formats = &provisioner.attestation_formats;
        // Without a list step-ca takes all that it knows.
        let takes = |format: &str| formats.is_empty() || formats.iter().any(|one| one == format);
        let (format, kind) = [("apple", "serial"), ("step", "yubico"), ("tpm", "tpm")]
            .into_iter()
            .find(|(format, _)| takes(format))
            .with_context(|| format!("provisioner `{}` takes the attestation formats {}, none of which Stepward knows an identifier of: add apple, step or tpm", provisioner.name, shown::cell(&formats.join(", "))))?;
        if format != "apple" {
            self.identity = format!("attestation = [\"{format}\"]\nidentifier = \"{kind}\"\n");
            self.identifier = format!("identifier = \"{kind}\"\n");
        }
        if format == "tpm" {
            self.identity += "# Only where the roots stamp an identifier into every attestation key's certificate: see docs/configuration.md.\n# tpm_roots_stamp_identifier = true\n";
            self.notes.push(
                "With attestation by TPM, see `tpm_roots_stamp_identifier` in stepward.toml: without it check-config refuses the webhook."
                    .to_owned(),
            );
        }
        if formats.len() != 1 {
            self.notes.push(format!(
                "`{}` takes other attestation formats as well; devices that attest by another one than `{format}` are denied.",
                provisioner.name
            ));
        }
        Ok(())
    }
}

/// Name of the webhook, by which templates read its data.
const WEBHOOK: &str = "posture";

#[cfg(test)]
mod tests {
    use super::*;

    fn provisioners(json: serde_json::Value) -> Vec<Provisioner> {
        serde_json::from_value(json).unwrap()
    }

    fn listed() -> Vec<Provisioner> {
        provisioners(serde_json::json!([
            { "type": "JWK", "name": "laptops", "claims": { "disableRenewal": true }, "options": { "webhooks": [{ "name": "posture" }] } },
            { "type": "ACME", "name": "web" },
            { "type": "ACME", "name": "phones", "challenges": ["device-attest-01"], "attestationFormats": ["apple"] },
            { "type": "X5C", "name": "x5c", "claims": {} },
            { "type": "SSHPOP", "name": "sshpop" },
        ]))
    }

    #[test]
    fn e14_the_provisioner_that_attests_is_taken_unasked_and_what_is_named_is_fitted() {
        let all = listed();
        let fit = Fit::choose(None, &all).unwrap();
        assert_eq!((&*fit.name, &*fit.webhook, &*fit.identity, &*fit.identifier), ("phones", "posture", "", ""));
        assert_eq!(fit.commands, ["step ca provisioner update phones --disable-renewal"]);
        let fit = Fit::choose(Some("laptops"), &all).unwrap();
        assert_eq!((&*fit.webhook, fit.commands.len()), ("posture2", 0), "its name is taken, and it renews nothing");
        assert_eq!(fit.identity, "identity = \"claimed\"\nidentity_field = \"subject.cn\"\nidentifier = \"hostname\"\n");
        assert_eq!(fit.identifier, "identifier = \"hostname\"\n");
        assert!(Fit::choose(Some("web"), &all).unwrap().identity.contains("san.dns"));
        assert!(Fit::choose(Some("x5c"), &all).unwrap().identity.contains("\"certificate\""));
        let of = |formats: &[&str]| {
            let one =
                serde_json::json!([{ "type": "ACME", "name": "a", "challenges": ["device-attest-01"], "attestationFormats": formats }]);
            Fit::choose(None, &provisioners(one))
        };
        assert_eq!(of(&["step"]).unwrap().identity, "attestation = [\"step\"]\nidentifier = \"yubico\"\n");
        assert!(of(&["tpm"]).unwrap().identity.contains("# tpm_roots_stamp_identifier = true"));
        assert!(of(&["step", "apple"]).unwrap().notes.iter().any(|note| note.contains("takes other attestation formats")));
        assert!(of(&["odd"]).unwrap_err().to_string().contains("add apple, step or tpm"));
        let none = Fit::choose(None, &[]).unwrap();
        assert!(none.name == "devices" && none.commands[0].contains("provisioner add devices --type ACME"));
        for (named, said) in [("nobody", "the CA has no provisioner `nobody`; it has `laptops` (JWK)"), ("sshpop", "is of the type SSHPOP")]
        {
            let error = Fit::choose(Some(named), &all).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let twice = [&all[2..3], &all[2..3]].concat();
        let odd = serde_json::json!([{ "type": "ACME", "name": "a\n[envoy]", "challenges": ["device-attest-01"] }]);
        assert!(Fit::choose(None, &provisioners(odd)).unwrap_err().to_string().contains("cannot stand in a command"));
        assert!(Fit::choose(None, &twice).unwrap_err().to_string().contains("name one by --provisioner"));
    }
}
