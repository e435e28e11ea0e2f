//! `stepward webhook rotate`: the steps by which a webhook gets another secret while certificates are issued.
//!
//! step-ca changes neither the id nor the secret of a webhook, and has no command for it: a second webhook with an id and a secret
//! of its own takes the place of the first. To remove the first one before the second is asked would leave the provisioner with
//! nobody to ask, so step-ca would sign whatever it is sent; and to have the second one asked before Stepward knows its id would
//! refuse everything. So the second one begins as one of kind NOTIFYING, which is asked of no certificate.

mod choose;
mod place;
mod steps;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use settings::{Environment, SecretSource, files};

use crate::cli::exit::Exit;
use crate::cli::pasted::{may_be_printed, next_name};
use crate::config::Config;
use choose::{Provisioner, choose};
use place::{Place, UNITS};
use steps::Steps;

/// What `webhook rotate` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  step ca provisioner list | stepward webhook rotate --config stepward.toml
  step ca provisioner list > provisioners.json
  stepward webhook rotate 11111111-2222-4333-8444-555555555555 --provisioners provisioners.json --config stepward.toml

It changes nothing: it prints the commands of step and the lines of the configuration, in the order in which no certificate is
refused and none is issued without a question. What step-ca tells of its provisioners is no secret. Run it where the service is:
it looks where the new secret has to go.

Exit codes: 0 printed, 1 failed, 2 usage.")]
pub struct RotateArgs {
    /// Id or name of the webhook that is to go; without it the one that step-ca and the configuration both have
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// File with what `step ca provisioner list` printed; without it the standard input
    #[arg(long, value_name = "FILE")]
    provisioners: Option<PathBuf>,
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Prints the steps of a rotation.
///
/// # Errors
/// Where the configuration or what step-ca told cannot be read, or no webhook stands in both.
pub(super) fn run(args: &RotateArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    run_with(args, environment, &UNITS.map(PathBuf::from), out)
}

fn run_with(args: &RotateArgs, environment: &Environment, units: &[PathBuf], out: &mut impl Write) -> anyhow::Result<Exit> {
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
    for name in [&provisioner.name, &hook.name, &hook.url, &hook.cert_type] {
        may_be_printed(name)?;
    }
    let file = args.config.clone().or_else(|| environment.variable("STEPWARD_CONFIG").map(PathBuf::from));
    let taken: BTreeSet<&str> = provisioner.options.webhooks.iter().map(|hook| hook.name.as_str()).collect();
    let folder = loaded.files.first().and_then(|file| file.parent()).unwrap_or(&environment.directory);
    let files = webhook.secrets.iter().filter_map(|source| if let SecretSource::File(file) = source { Some(file) } else { None });
    let old: Vec<Place> = files.map(|file| Place::of(file, units)).collect();
    let beside = || Place::of(&folder.join(format!("webhook-{}-secret", hook.name)), units);
    let new = old.first().cloned().unwrap_or_else(beside).next(|name, folder| next_name(name, |name| folder.join(name).exists()));
    let steps = Steps {
        webhook,
        old,
        new,
        others: config.webhooks.iter().filter(|other| other.table == webhook.table && other.id != webhook.id).collect(),
        provisioner: &provisioner.name,
        hook,
        name: next_name(&hook.name, |name| taken.contains(name)),
        folder,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::steps::data;
    use super::*;

    const BEGIN: &str = "[envoy]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"\n";
    const REST: &str = "callers = [\"dns:ca\"]\nproviders = [\"staff\"]\n[provider.staff]\ntype = \"file\"\npath = \"d.csv\"\n";

    /// Returns what is printed for a webhook of these lines, where step-ca has the webhooks `old`, and whatever else is listed.
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

    /// Returns what is printed where units are in `systemd` of the folder.
    fn printed_with(file: &str, prepare: impl Fn(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let list = r#"[{"name": "p", "options": {"webhooks": [{"id": "old", "name": "posture", "url": "https://a/webhook/d"}]}}]"#;
        std::fs::write(folder.path().join("list.json"), list).unwrap();
        prepare(folder.path());
        let lines = format!("id = \"old\"\nsecrets = [{{ file = \"{file}\" }}]");
        std::fs::write(folder.path().join("s.toml"), format!("{BEGIN}[[webhook]]\n{lines}\n{REST}")).unwrap();
        let args = RotateArgs { id: None, provisioners: Some("list.json".into()), config: Some("s.toml".into()) };
        let mut out = Vec::new();
        run_with(&args, &Environment::new(folder.path()), &[folder.path().join("none"), folder.path().join("systemd")], &mut out).unwrap();
        String::from_utf8(out).unwrap().replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn e33_a_secret_that_systemd_hands_over_is_written_where_systemd_loads_it_and_the_unit_started_again() {
        let unit = |setting: &'static str| {
            move |folder: &Path| {
                std::fs::create_dir_all(folder.join("systemd/a.service.d")).unwrap();
                std::fs::create_dir_all(folder.join("kept")).unwrap();
                std::fs::write(folder.join("kept/laptops"), "").unwrap();
                std::fs::write(folder.join("systemd/a.service"), "[Service]\nUser=a\n").unwrap();
                let setting = setting.replace("DIR", &folder.display().to_string());
                std::fs::write(folder.join("systemd/a.service.d/own.conf"), format!("[Service]\n{setting}\n")).unwrap();
            }
        };
        let text = printed_with("/run/credentials/a.service/s_laptops", unit("LoadCredential=s:DIR/kept"));
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in {text}"));
        let order = [
            "sed -n 's/^Secret: //p' webhook-posture2.printed > kept/laptops2)",
            "\nsystemctl restart a.service\n",
            "{ id = \"NEW_ID\", secret = { file = \"/run/credentials/a.service/s_laptops2\" } },",
            "stepward check-config --config s.toml\nstepward reload",
            "#    secrets = [{ file = \"/run/credentials/a.service/s_laptops2\" }]\n",
            "rm kept/laptops webhook-posture2.printed\n",
        ];
        assert!(order.map(at).is_sorted() && !text.contains("> /run/credentials") && !text.contains("systemctl edit"), "{text}");
        // A credential from a file of its own needs a setting of its own.
        let text = printed_with("/run/credentials/a.service/hook", unit("LoadCredential=hook:DIR/kept/laptops"));
        for part in [
            "> kept/laptops2)",
            "`systemctl edit a.service`",
            "#    LoadCredential=hook2:kept/laptops2\n",
            "\"/run/credentials/a.service/hook2\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = printed_with("/run/credentials/a.service/s_laptops", unit("LoadCredentialEncrypted=s:DIR/kept"));
        assert!(
            text.contains("systemd-creds encrypt --name=s_laptops2 kept/laptops2 ENCRYPTED, then mv ENCRYPTED kept/laptops2\n"),
            "{text}"
        );
        let text = printed_with("/run/credentials/b.service/s_laptops", unit("LoadCredential=s:DIR/kept"));
        assert!(text.contains("> FOLDER/s_laptops2)") && text.contains("LoadCredential= in `systemctl cat` says where"), "{text}");
    }

    #[test]
    fn e33_where_the_folder_of_secrets_cannot_be_written_to_it_says_what_runs_where() {
        // A file in the place of a folder is closed to root as well.
        let text = printed_with("plain/secret", |folder| std::fs::write(folder.join("plain"), "").unwrap());
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in {text}"));
        let order = [
            "# `docker compose exec step-ca` and",
            "> secret2)\n",
            "put the file secret2 there as root",
            "secret = { file = \"plain/secret2\" }",
            "rm webhook-posture2.printed secret2\n# and, from where the service has its secrets: rm plain/secret\n",
        ];
        assert!(order.map(at).is_sorted() && !text.contains("> plain"), "{text}");
        assert!(!printed(ONE, None, "").unwrap().contains("docker compose"));
    }

    const ONE: &str = "id = \"old\"\nsecrets = [{ file = \"secrets/laptops\" }]\nbearer = [{ file = \"secrets/token\" }]";

    #[test]
    fn e4_the_second_webhook_is_asked_once_stepward_knows_it_and_the_first_is_removed_after_that() {
        let text = printed(ONE, None, "").unwrap();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in {text}"));
        let order = [
            r"step ca provisioner webhook add 'it'\''s' posture2 --kind NOTIFYING --url https://a:9443/webhook/d --cert-type SSH --bearer-token-file secrets/token > webhook-posture2",
            "sed -n 's/^Secret: //p' webhook-posture2.printed > secrets/laptops2)",
            "#    ids = [\n#      { id = \"NEW_ID\", secret = { file = \"secrets/laptops2\" } },\n#      { id = \"old\", secret = { file = \"secrets/laptops\" } },\n#    ]\n",
            "stepward reload --config s.toml\n",
            "#    {{- $posture := coalesce .Webhooks.posture2 .Webhooks.posture | default dict -}}\n",
            r"step ca provisioner webhook update 'it'\''s' posture2 --kind ENRICHING --cert-type SSH --bearer-token-file secrets/token",
            r"step ca provisioner webhook remove 'it'\''s' posture",
            "#    id = \"NEW_ID\"\n#    secrets = [{ file = \"secrets/laptops2\" }]\n",
            "rm secrets/laptops webhook-posture2.printed\n",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
        assert!(!text.contains("secret = \"") && text.matches("\n# ").count() > 6);
        // Nothing else is written into the file of the secret.
        let text = printed("id = \"old\"\nsecrets = [{ file = \"webhook-posture\" }]", None, "").unwrap();
        assert!(text.contains("sed -n 's/^Secret: //p' webhook-posture2.printed > webhook-posture2)"), "{text}");
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
            (ONE, Some("other"), "", "there is no webhook `other`; there is old alone"),
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
        assert_eq!(next_name("posture", |_| false), "posture2");
        assert_eq!(next_name("posture2", |name| name == "posture3"), "posture4");
        assert_eq!(next_name("99999999999", |_| false), "2", "what is no number of ours is counted anew");
        assert_eq!((data("posture2"), data("my-hook")), (".Webhooks.posture2".to_owned(), "(index .Webhooks \"my-hook\")".to_owned()));
    }
}
