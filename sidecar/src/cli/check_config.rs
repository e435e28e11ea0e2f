//! `stepward check-config`: everything that can be known of a configuration before it is used.

mod finding;
mod report;

pub use finding::Finding;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use settings::{Environment, Mistake};

use crate::config::Config;
use crate::folders::{self, Looks};
use report::{table, to_json};

/// Check a configuration and everything that it names
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward check-config --config stepward.toml
  stepward check-config --config stepward.toml --output json

Secrets, TLS files, device files, store, groups, sockets and addresses are looked at as the service's start does, and left
as they are. Run it as the user of the service: what only that user may read is a mistake otherwise. Root may read everything,
so for root it looks whether the owner of the store or of the sockets may. No secret is shown.

Exit codes: 0 good (there may be warnings), 1 mistakes, 2 usage.")]
pub struct CheckConfigArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Prints what was found; `Ok(true)`: the configuration can be used.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &CheckConfigArgs, env: &Environment, now: SystemTime, stdout: &mut dyn std::io::Write) -> std::io::Result<bool> {
    let finding = check(args.config.as_deref(), env, now);
    match args.output {
        Output::Table => table(&finding, stdout)?,
        Output::Json => writeln!(stdout, "{}", to_json(&finding))?,
    }
    Ok(finding.mistakes.is_empty())
}

/// Reads the configuration and opens what it names, as the service's start does, and goes on after a mistake wherever it can.
pub fn check(path: Option<&Path>, env: &Environment, now: SystemTime) -> Finding {
    let mut finding = Finding::default();
    let config = match Config::load(path, env) {
        Ok(loaded) => {
            finding.warnings.extend(loaded.warnings.iter().cloned());
            finding.as_service(&loaded);
            let open = folders::warnings(&loaded.config, &loaded.files, Looks::Operator);
            finding.warnings.extend(open.iter().map(|warning| Mistake::of_whole(warning.to_string())));
            loaded.config
        }
        Err(mistakes) => {
            finding.mistakes.extend(mistakes.0);
            return finding;
        }
    };
    let secrets = match config.resolve_secrets(env) {
        Ok(secrets) => {
            finding.warnings.extend(secrets.warnings.iter().cloned());
            Some(secrets)
        }
        Err(mistakes) => {
            finding.mistakes.extend(mistakes.0);
            None
        }
    };
    finding.files(&config, now);
    finding.devices(&config);
    finding.opened(&config, secrets.as_ref());
    finding.says_as_whom();
    finding.config = Some(config);
    finding
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use serde_json::{Value, json};

    use super::*;
    use crate::users;

    const SECRET: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";

    /// A folder with everything that a good configuration names.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2030, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            folder.write("server.crt", &certificate.pem());
            folder.write("ca.crt", &certificate.pem());
            folder.write("server.key", &key.serialize_pem());
            folder.write("filter.wasm", "");
            folder.write("devices.json", r#"{"devices":[{"identifier":"C02A"}]}"#);
            folder.write(
                "stepward.toml",
                "[listen]\nadmin = \"127.0.0.1:0\"\n[envoy]\ncertificate = \"server.crt\"\nprivate_key = \"server.key\"\nclient_ca = \"ca.crt\"\nwasm = \"filter.wasm\"\n\
                 [[webhook]]\nid = \"one\"\nsecrets = [{ env = \"SECRET\" }]\ncallers = [\"dns:ca\"]\nproviders = [\"staff\"]\n\
                 [provider.staff]\ntype = \"file\"\npath = \"devices.json\"\n",
            );
            folder
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.0.path().join(name)).unwrap();
        }

        fn check(&self, output: Output, year: i32) -> (bool, String) {
            let env = Environment::new(self.0.path()).with("SECRET", SECRET);
            let args = CheckConfigArgs { config: Some("stepward.toml".into()), output };
            let mut out = Vec::new();
            let good = run(&args, &env, date_time_ymd(year, 12, 24).into(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap().replace(&self.0.path().display().to_string(), "DIR");
            assert!(!text.contains(SECRET) && !text.contains("canary"), "{text}");
            (good, text)
        }
    }

    #[test]
    fn sums_up_a_good_configuration() {
        let (good, text) = Folder::new().check(Output::Table, 2026);
        assert!(good);
        insta::assert_snapshot!("good", text);
    }

    #[test]
    fn e31_what_the_users_of_the_service_and_of_envoy_may_not_read_is_a_mistake_for_whoever_may_read_everything() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new();
        let mode = |name: &str, mode| std::fs::set_permissions(folder.0.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        mode("", 0o755);
        let loaded = Config::load(Some(Path::new("stepward.toml")), &Environment::new(folder.0.path())).unwrap();
        let found = |uid| users::Found { account: users::Account::of(uid), by: "run/filter".into() };
        let looked = |envoy: Option<u32>| {
            let mut finding = Finding::default();
            finding.as_users(&loaded, &found(77_777), envoy.map(found).as_ref());
            let text = |told: &[Mistake]| {
                told.iter().map(|one| one.to_string().replace(&format!("{}/", folder.0.path().display()), "")).collect::<Vec<_>>()
            };
            (text(&finding.mistakes), text(&finding.notes))
        };
        for name in ["stepward.toml", "devices.json", "server.crt", "server.key", "ca.crt", "filter.wasm"] {
            mode(name, 0o644);
        }
        let (mistakes, notes) = looked(Some(77_778));
        assert_eq!(mistakes, [""; 0]);
        let said =
            "the user of the service, the user 77777, who owns run/filter; and of Envoy, the user 77778, who is in the group of run/filter";
        assert!(matches!(&notes[..], [one] if one.ends_with(said)), "{notes:?}");
        for (name, who) in [("stepward.toml", "service"), ("devices.json", "service"), ("server.key", "Envoy")] {
            mode(name, 0o600);
            let (mistakes, _) = looked(Some(77_778));
            let user = if who == "Envoy" { "the user 77778, the user of Envoy" } else { "the user 77777, the user of the service" };
            assert!(matches!(&mistakes[..], [one] if one.starts_with(&format!("{name}: {user}, may not read it: "))), "{mistakes:?}");
            assert_eq!(looked(None).0.len(), usize::from(who == "service"));
            mode(name, 0o644);
        }
    }

    #[test]
    fn says_which_policy_judges() {
        let folder = Folder::new();
        let text = std::fs::read_to_string(folder.0.path().join("stepward.toml")).unwrap();
        let text = text.replacen("providers = [\"staff\"]", "policy = \"all\"", 1);
        folder.write("stepward.toml", &format!("{text}[policy.all]\nproviders = [\"staff\"]\n"));
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("asks staff and enforces policy all"), "{text}");
        let (_, understood) = text.split_once("policy    all  asks staff\n").unwrap();
        assert!(
            understood.starts_with("          not_lost: must not be lost, where that is known, or is denied with device_lost\n"),
            "{text}"
        );
        let value: Value = serde_json::from_str(&folder.check(Output::Json, 2026).1).unwrap();
        assert_eq!((&value["webhooks"][0]["policy"], &value["webhooks"][0]["enforcement"]), (&json!("all"), &json!("enforce")));
    }

    #[test]
    fn shows_the_address_that_is_asked() {
        let folder = Folder::new();
        let text = std::fs::read_to_string(folder.0.path().join("stepward.toml")).unwrap();
        let secret = "{ env = \"SECRET\" }";
        let intune = format!("type = \"intune\"\ntenant_id = \"t\"\nclient_id = \"c\"\nclient_secret = {secret}\n");
        let mosyle = format!("type = \"mosyle\"\naccess_token = {secret}\nemail = \"a@example.org\"\npassword = {secret}\n");
        for (provider, shown) in [
            (intune.clone(), "https://graph.microsoft.com/"),
            (format!("{intune}graph_url = \"https://graph.microsoft.us\"\n"), "https://graph.microsoft.us/"),
            (mosyle.clone(), "https://businessapi.mosyle.com/v1"),
            (format!("{mosyle}product = \"manager\"\n"), "https://managerapi.mosyle.com/v2"),
        ] {
            folder.write("stepward.toml", &format!("{text}[provider.mdm]\n{provider}"));
            let (good, text) = folder.check(Output::Table, 2026);
            assert!(good && text.contains(shown), "{text}");
        }
    }

    #[test]
    fn tells_programs_in_json() {
        let (good, text) = Folder::new().check(Output::Json, 2026);
        assert!(good);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["webhooks"][0]["callers"][0], "dns:ca");
        assert_eq!(value["providers"][0], json!({ "name": "staff", "type": "file", "place": "DIR/devices.json" }));
    }

    #[test]
    fn names_every_mistake_of_the_files() {
        let folder = Folder::new();
        folder.write("server.key", &KeyPair::generate().unwrap().serialize_pem());
        folder.remove("devices.json");
        folder.remove("filter.wasm");
        let (good, mut text) = folder.check(Output::Table, 2026);
        assert!(!good);
        for (name, content) in
            [("no certificate", ""), ("broken certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
        {
            let folder = Folder::new();
            folder.write("server.crt", content);
            let (good, finding) = folder.check(Output::Table, 2026);
            assert!(!good);
            text.push_str(&format!("--- {name}\n{finding}"));
        }
        let folder = Folder::new();
        folder.write("server.key", "nothing");
        let (good, finding) = folder.check(Output::Table, 2026);
        assert!(!good);
        text.push_str(&format!("--- no key\n{finding}"));
        insta::assert_snapshot!("files", text);
    }

    #[test]
    fn d4_the_content_of_a_device_file_is_looked_at() {
        let folder = Folder::new();
        folder.write("devices.json", r#"{"devices":[{"identifier":"A"},{"identifier":"None"}]}"#);
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("warning: DIR/devices.json:1:46: `None` identifies no device"), "{text}");
        folder.write("devices.json", r#"{"devices":[{},{}]}"#);
        let (good, text) = folder.check(Output::Json, 2026);
        let value: Value = serde_json::from_str(&text).unwrap();
        let found: Vec<_> =
            value["mistakes"].as_array().unwrap().iter().map(|one| json!([one["file"], one["line"], one["column"]])).collect();
        assert_eq!((good, found), (false, vec![json!(["DIR/devices.json", 1, 13]), json!(["DIR/devices.json", 1, 16])]));
        assert_eq!(value["mistakes"][0]["message"], "the device has no `identifier`");
        assert_eq!(value["mistakes"][0]["text"], "DIR/devices.json:1:13: the device has no `identifier`");
    }

    #[test]
    fn g12_a_folder_or_a_pipe_is_no_file_wherever_one_is_named() {
        for name in ["server.crt", "server.key", "ca.crt", "filter.wasm", "devices.json", "state/stepward.db"] {
            for pipe in [true, false] {
                let folder = Folder::new();
                let path = folder.0.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let _ = std::fs::remove_file(&path);
                if pipe {
                    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
                } else {
                    std::fs::create_dir(&path).unwrap();
                }
                let (good, text) = folder.check(Output::Table, 2026);
                assert!(
                    !good && text.contains(&format!("mistake: DIR/{name}: ")) && text.contains("is not a regular file"),
                    "{name}: {text}"
                );
            }
        }
        let folder = Folder::new();
        folder.remove("stepward.toml");
        assert!(std::process::Command::new("mkfifo").arg(folder.0.path().join("stepward.toml")).status().unwrap().success());
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(!good && text.contains("is not a regular file"), "{text}");
    }

    /// Adds to the configuration, or changes what stands there.
    fn with(folder: &Folder, from: &str, to: &str) {
        let path = folder.0.path().join("stepward.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    #[test]
    fn e10_what_the_start_would_stumble_over_is_a_mistake_and_nothing_is_left_behind() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let entries = |folder: &Folder| {
            let names = std::fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<BTreeSet<_>>()
        };
        let mdm = "[provider.mdm]\ntype = \"kandji\"\nbase_url = \"https://kandji.example.org\"\ntoken = { env = \"SECRET\" }\nca_file = \"devices.json\"\n[provider.staff]";
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let used = format!("admin = \"{}\"", taken.local_addr().unwrap());
        for (from, to, said) in [
            ("[envoy]", "group = \"no-such-group\"\n[envoy]", "there is no group `no-such-group`"),
            ("[envoy]", "[listen.groups]\nquery = \"no-such-group\"\n[envoy]", "there is no group `no-such-group`"),
            (
                "[envoy]",
                "sockets = \"devices.json/run\"\n[envoy]",
                "DIR/devices.json is no folder, and the sockets are in DIR/devices.json/run",
            ),
            ("[envoy]", "sockets = \"taken\"\n[envoy]", "DIR/taken/query.sock is there and is no socket"),
            ("127.0.0.1:0", "192.0.2.1:9464", "listen on 192.0.2.1:9464: "),
            ("[provider.staff]", mdm, "provider `mdm`: ca_file DIR/devices.json"),
            ("[envoy]", "[store]\npath = \"devices.json/store.db\"\n[envoy]", "DIR/devices.json is no folder"),
            ("[envoy]", "[store]\npath = \"devices.json\"\n[envoy]", "the store DIR/devices.json is damaged"),
            ("[envoy]", "[store]\npath = \"filter.wasm\"\n[envoy]", "the store DIR/filter.wasm is empty or gone"),
            ("[envoy]", "[store]\npath = \"other.db\"\n[envoy]", "DIR/other.db is a database of something else"),
            ("[envoy]", "[store]\npath = \"later.db\"\n[envoy]", "the store DIR/later.db has schema 99"),
        ] {
            let folder = Folder::new();
            std::fs::create_dir(folder.0.path().join("taken")).unwrap();
            folder.write("taken/query.sock", "");
            let database = |name: &str, application: u32, version: u8| {
                let mut header = b"SQLite format 3\0".to_vec();
                header.resize(100, 0);
                header[63] = version;
                header[68..72].copy_from_slice(&application.to_be_bytes());
                std::fs::write(folder.0.path().join(name), header).unwrap();
            };
            database("other.db", 7, 1);
            database("later.db", 0x5354_5750, 99);
            with(&folder, from, to);
            let before = entries(&folder);
            let (good, text) = folder.check(Output::Table, 2026);
            assert!(!good && text.contains(said) && text.contains("1 mistake\n"), "{said}: {text}");
            assert_eq!(entries(&folder), before);
        }
        // The service itself may be what listens there.
        let folder = Folder::new();
        with(&folder, "admin = \"127.0.0.1:0\"", &used);
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("is in use: by the service, if it runs"), "{text}");
        let before = entries(&Folder::new());
        let folder = Folder::new();
        assert!(folder.check(Output::Table, 2026).0);
        assert_eq!(entries(&folder), before);
    }

    #[test]
    fn knows_when_a_certificate_ends() {
        let folder = Folder::new();
        assert!(!folder.check(Output::Table, 2019).0);
        let (good, soon) = folder.check(Output::Table, 2029);
        assert!(good && soon.contains("ends at 2030-01-01T00:00:00Z"), "{soon}");
        let (good, ended) = folder.check(Output::Table, 2030);
        assert!(!good && ended.contains("ended at 2030-01-01T00:00:00Z"), "{ended}");
    }

    #[test]
    fn stops_at_a_configuration_that_cannot_be_read() {
        let folder = Folder::new();
        folder.write("stepward.toml", "[listen]\n");
        let (good, text) = folder.check(Output::Json, 2026);
        assert!(!good);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["mistakes"].as_array().map(Vec::len), Some(2));
    }
}
