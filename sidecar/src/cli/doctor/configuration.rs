//! Examination of what can be told from files alone: the configuration, its secrets, and how its webhooks are meant.

use std::time::SystemTime;

use inventory::Finding;
use nix::sys::statvfs::statvfs;
use posture::caller::Callers;
use settings::Environment;

use super::examined::{Examined, doubtful};
use crate::cli::check_config;
use crate::config::{Config, Loaded};
use crate::folders::{self, Looks};
use engine::plan::Enforcement;

/// Examines the configuration, the files that it names, and its secrets.
pub(super) fn examine(loaded: &Loaded, environment: &Environment) -> Vec<Examined> {
    let config = &loaded.config;
    let mut files = check_config::Finding::default();
    let now = SystemTime::now();
    files.files(config, now);
    files.as_service(loaded);
    // Mistakes and warnings about dates are left out: each certificate has a finding of its own.
    let of_dates: Vec<_> = files.dated.iter().filter_map(|(_, told)| told.clone()).collect();
    for told in [&mut files.mistakes, &mut files.warnings] {
        told.retain(|one| !of_dates.contains(one));
    }
    let mut findings = vec![Finding::good(
        "file",
        format!(
            "it is whole: webhooks {}, providers {}, policies {}",
            config.webhooks.len(),
            config.providers.len(),
            config.policies.len()
        ),
    )];
    findings.extend(loaded.warnings.iter().map(|warning| doubtful("file", warning.to_string(), "see docs/configuration.md")));
    if files.mistakes.is_empty() && files.warnings.is_empty() {
        findings.push(Finding::good("files", "certificates, keys and device files can be read"));
    }
    findings.extend(
        files
            .mistakes
            .into_iter()
            .map(|mistake| Finding::bad("files", mistake.to_string(), "correct the file, or its name in the configuration")),
    );
    findings.extend(files.dated.iter().map(|(validity, _)| validity.finding("certificate", now)));
    findings.extend(files.notes.into_iter().map(|note| Finding::good("files", note.to_string())));
    findings.extend(
        files
            .warnings
            .into_iter()
            .map(|warning| doubtful("files", warning.to_string(), "mend or renew the file, or correct its name in the configuration")),
    );
    let open = folders::warnings(config, &loaded.files, Looks::Operator);
    findings.extend(open.into_iter().map(|warning| doubtful("folders", warning.said, warning.fix)));
    findings.extend(room(config));
    let secrets = match config.resolve_secrets(environment) {
        Ok(secrets) if secrets.warnings.is_empty() => vec![Finding::good("all", "each is there, and not known to be shared or short")],
        Ok(secrets) => {
            secrets.warnings.iter().map(|warning| doubtful("one", warning.to_string(), "replace it, or guard it better")).collect()
        }
        Err(mistakes) => {
            let fix = "write the secret there, as the user of the service can read it";
            mistakes.0.iter().map(|mistake| Finding::bad("one", mistake.to_string(), fix)).collect()
        }
    };
    vec![Examined { subject: "configuration".to_owned(), findings }, Examined { subject: "secrets".to_owned(), findings: secrets }]
}

/// Examines whether the disk of the store has room for what is written to it.
fn room(config: &Config) -> Option<Finding> {
    let store = config.store.path.as_ref()?;
    let folder = store.ancestors().skip(1).find(|folder| folder.is_dir())?;
    let system = statvfs(folder).ok()?;
    Some(left(&folder.display().to_string(), u128::from(system.blocks_available()) * u128::from(system.fragment_size())))
}

/// Makes the finding on whether so many bytes are enough.
fn left(shown: &str, bytes: u128) -> Finding {
    let mebibytes = bytes >> 20;
    if mebibytes < LEAST_ROOM {
        let fix = "make room, or lower retention or max_decisions in [store]: docs/locks.md has what a decision takes";
        doubtful("room", format!("the disk of the store, {shown}, has {mebibytes} MiB left"), fix)
    } else {
        Finding::good("room", format!("the disk of the store, {shown}, has {mebibytes} MiB left"))
    }
}

/// MiB that should be free: the log of a busy store alone may take 64.
const LEAST_ROOM: u128 = 256;

/// Examines what webhooks let through by the way they are set up, and names what only step-ca knows of them.
pub(super) fn webhooks(config: &Config) -> Vec<Examined> {
    let each = config.webhooks.iter().filter_map(|webhook| {
        let mut findings = Vec::new();
        let ids: Vec<&str> = config.ids_beside(webhook).collect();
        if ids.len() > 1 && ids.first() == Some(&&*webhook.id) {
            let fix = "once step-ca uses one of them alone, take the others out of `ids`, and their secrets with them: `stepward webhook rotate` has the steps";
            findings.push(doubtful("ids", format!("it has several: {}", ids.join(", ")), fix));
        }
        if webhook.unsigned {
            let fix = "keep provisioners in step-ca's database (`enableAdmin`), which gives the webhook a secret";
            findings.push(doubtful("signature", "it is not signed: whoever is let in by its certificate can make it", fix));
        }
        match webhook.callers {
            Callers::Named(_) => {}
            Callers::Anonymous => findings.push(doubtful("callers", "anybody may call", "set client_ca, and name step-ca in callers")),
            Callers::AnyVerified => {
                findings.push(doubtful("callers", "anybody with a certificate from client_ca may call", "name step-ca in callers"));
            }
        }
        if webhook.policy.is_some() && webhook.enforcement == Enforcement::Observe {
            let fix = "set enforcement = \"enforce\" once the record of decisions is as it should be";
            findings.push(doubtful("policy", "it is only observed: what it denies is allowed", fix));
        }
        (!findings.is_empty()).then(|| Examined { subject: format!("webhook {}", webhook.shown()), findings })
    });
    // step-ca tells nobody how its provisioners are set up but its administrators.
    let renewal = doubtful(
        "renewal",
        "whether step-ca's provisioners have --disable-renewal cannot be seen from here; one without it renews certificates and asks nobody",
        "see `step ca provisioner list` for \"disableRenewal\": true, and otherwise `step ca provisioner update NAME --disable-renewal`",
    );
    each.chain([Examined { subject: "step-ca".to_owned(), findings: vec![renewal] }]).collect()
}

/// Makes the finding about clocks where no provider told its own.
pub(super) fn clock(all: &[Examined]) -> Option<Examined> {
    let compared = all.iter().flat_map(|examined| &examined.findings).any(|finding| finding.check == "clock");
    let detail =
        "this machine's clock was compared with nobody's; a webhook is refused where it and step-ca's differ by more than its window";
    let fix = "let NTP set the clocks of this machine and of step-ca's";
    (!compared).then(|| Examined { subject: "machine".to_owned(), findings: vec![doubtful("clock", detail, fix)] })
}

#[cfg(test)]
mod tests {
    use inventory::State;
    use std::path::Path;

    use super::*;
    use crate::fixture;

    #[test]
    fn e10_the_disk_of_the_store_is_doubtful_below_what_a_busy_store_may_take() {
        assert_eq!(left("/srv", (256 << 20) - 1).state, State::Doubtful);
        assert_eq!(left("/srv", 256 << 20).state, State::Good);
        let said = left("/srv", 5 << 20);
        assert!(said.detail.contains("/srv, has 5 MiB left") && said.fix.contains("retention"), "{said:?}");
    }

    #[test]
    fn e10_the_disk_is_that_of_the_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::new(folder.path());
        fixture::make(&folder.path().join("demo"));
        let room = |lines: &str| {
            let text = std::fs::read_to_string(folder.path().join("demo/stepward.toml")).unwrap();
            let config =
                Config::parse(&format!("{text}\n[store]\n{lines}\n"), Path::new("demo/stepward.toml"), &environment).unwrap().config;
            room(&config)
        };
        let shown = folder.path().join("demo").display().to_string();
        assert!(room("path = \"not/yet/there.db\"").unwrap().detail.contains(&format!("{shown}, has ")));
        // A file system of the kernel's own has no room at all.
        let full = room("path = \"/proc/not/there.db\"").unwrap();
        assert_eq!((full.state, &*full.detail), (State::Doubtful, "the disk of the store, /proc, has 0 MiB left"));
        assert!(room("enabled = false").is_none());
    }

    #[test]
    fn e4_a_webhook_with_several_ids_is_told_of_once() {
        let text = "[envoy]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"\n[[webhook]]\nids = [{ id = \"new\", secret = { env = \"A\" } }, { id = \"old\", secret = { env = \"B\" } }]\ncallers = [\"dns:a\"]\nproviders = [\"staff\"]\n[provider.staff]\ntype = \"file\"\npath = \"d.csv\"\n";
        let config = Config::parse(text, Path::new("stepward.toml"), &Environment::new("/")).unwrap().config;
        let found = webhooks(&config);
        let told: Vec<_> = found.iter().flat_map(|one| one.findings.iter().map(|finding| (&*one.subject, &*finding.check))).collect();
        assert_eq!(told, [("webhook new", "ids"), ("step-ca", "renewal")]);
        assert_eq!(found[0].findings[0].detail, "it has several: new, old");
    }
}
