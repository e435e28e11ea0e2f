use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

use inventory::file::Format;
use inventory::{Placeholders, Service};
use posture::caller::{Callers, Name};
use posture::identity::{Field, IdentifierKind, Source};
use posture::secret::Secret;
use posture::shape::Mode;
use settings::Place;

use super::*;
use engine::provider::ProviderSettings;

const GOOD: &str = r#"
[envoy]
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"

[[webhook]]
id = "one"
secrets = [{ file = "secrets/webhook" }]
providers = ["staff"]

[provider.staff]
type = "file"
path = "devices.json"
"#;

const SECRET: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";

fn env() -> Environment {
    Environment::new("/etc/stepward")
}

fn parse(text: &str) -> Result<Loaded, Mistakes> {
    Config::parse(text, Path::new("stepward.toml"), &env())
}

fn outcome(result: Result<Loaded, Mistakes>) -> String {
    match result {
        Ok(loaded) => loaded.warnings.iter().fold("good\n".to_owned(), |text, warning| format!("{text}warning: {warning}\n")),
        Err(mistakes) => format!("{mistakes}\n"),
    }
}

/// Returns `GOOD` with one text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn names_every_mistake_with_its_place_and_its_repair() {
    let id = "id = \"one\"";
    let webhook = |line: &str| with(id, &format!("{id}\n{line}"));
    let secrets = |line: &str| with("secrets = [{ file = \"secrets/webhook\" }]", line);
    let staff = |line: &str| with("type = \"file\"", &format!("type = \"file\"\n{line}"));
    let ca = "client_ca = \"tls/ca.crt\"";
    let query = |lines: &str| with("[envoy]", &format!("[query]\n{lines}\n[envoy]"));
    let listening =
        |lines: &str| query(&format!("address = \"[::]:9445\"\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n{lines}"));
    let filters = |lines: &str| {
        let files = "certificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"";
        with("[envoy]", &format!("[filter]\naddress = \"[::]:9446\"\n{files}\n{lines}\n[envoy]"))
    };
    let sidecars = |list: &str| {
        let files = "sidecar_ca = \"a\"\nclient_certificate = \"c\"\nclient_private_key = \"k\"\n";
        with(ca, &format!("{ca}\nsidecars = {list}\n{files}"))
    };
    let cases = [
        ("good", GOOD.to_owned()),
        ("empty", String::new()),
        ("syntax", "a = \nb = \"x\n[c\n".to_owned()),
        ("duplicate key", "a = 1\na = 2\n".to_owned()),
        ("several at once", "[listn]\n[listen]\nadmin = 9464\nsocket = \"run\"\n[replay]\nmax_entries = 0\n".to_owned()),
        ("unknown key without a likeness", webhook("xyzzy = 1")),
        ("unknown section", with("[envoy]", "[log]\ncolour = true\n[envoy]")),
        ("section is no table", with("[envoy]", "listen = 1\n[envoy]")),
        ("admin address", with("[envoy]", "[listen]\nadmin = \"localhost:9464\"\n[envoy]")),
        ("long socket folder", with("[envoy]", &format!("[listen]\nsockets = \"{}\"\n[envoy]", "x".repeat(100)))),
        ("unknown role", with("[envoy]", "[listen]\nuids = { filtr = [1], admin = [-1, \"root\"] }\n[envoy]")),
        ("group", with("[envoy]", "[listen]\ngroup = \"\"\n[envoy]")),
        ("envoy address", with("[envoy]", "[envoy]\nwebhook_address = \"9443\"")),
        ("empty path", with("tls/server.crt", "")),
        ("no certificate", with("certificate = \"tls/server.crt\"\n", "")),
        ("level", with("[envoy]", "[log]\nlevel = \"infp\"\njson = \"yes\"\n[envoy]")),
        ("query of no use", query("certificate = \"c\"\n[[query.client]]\nnames = [\"dns:a\"]\nroles = [\"check\"]")),
        ("query address alone", query("address = \"localhost:9445\"\nreflexion = true")),
        ("query clients", listening("[[query.client]]\nnames = [\"vpn.example.org\", 1]\nroles = [\"chek\", \"everything\"]\nrole = 1")),
        ("query client without anything", listening("[[query.client]]\n[[query.client]]\nnames = []\nroles = []")),
        ("query client is no list", listening("client = 1")),
        ("query", listening("reflection = true\n[[query.client]]\nnames = [\"dns:a\"]\nroles = [\"check\", \"watch\"]")),
        ("filter of no use", with("[envoy]", "[filter]\ncertificate = \"c\"\nnames = [\"dns:a\"]\n[envoy]")),
        ("filter address alone", with("[envoy]", "[filter]\naddress = \"localhost:9446\"\nroles = [\"filter\"]\n[envoy]")),
        ("filter names", filters("names = [\"envoy.example.org\", 1]")),
        ("filter without names", filters("names = []")),
        ("filter", filters("names = [\"dns:envoy.example.org\", \"uri:spiffe://example.org/envoy\"]")),
        ("filter is no role of queries", listening("[[query.client]]\nnames = [\"dns:a\"]\nroles = [\"filter\"]")),
        ("sidecars of no use", with(ca, &format!("{ca}\nsidecar_ca = \"a\"\nclient_certificate = \"c\""))),
        (
            "sidecars alone",
            sidecars("[\"a.example.org:9446\"]")
                .replace("sidecar_ca = \"a\"\nclient_certificate = \"c\"\nclient_private_key = \"k\"\n", ""),
        ),
        (
            "sidecars that prove nothing",
            sidecars("[\"10.0.0.1:9446\", \"a.example.org\", 1, \"a.example.org:9446\", \"A.example.org:9446\"]"),
        ),
        ("no sidecars", sidecars("[]")),
        ("sidecars, and no filter here", sidecars("[\"a.example.org:9446\"]")),
        ("replay", with("[envoy]", "[replay]\nmax_entries = 0\nmax_bytes = 1.5\n[envoy]")),
        ("replay that nobody can share", with("[envoy]", "[replay]\nshared = true\n[envoy]")),
        ("no webhook", "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\n".to_owned()),
        ("webhook is no list", "webhook = 1\n[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\n".to_owned()),
        ("webhook list is empty", "webhook = []\n[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\n".to_owned()),
        ("no id", with(id, "")),
        ("impossible id", with(id, "id = \"one two\"")),
        ("kind", webhook("kind = \"authorising\"")),
        ("identifier", webhook("identifier = \"imei\"")),
        ("attestation", webhook("attestation = [\"aple\", 1]")),
        ("no attestation", webhook("attestation = []")),
        ("tpm", webhook("attestation = [\"tpm\"]")),
        ("tpm whose roots stamp", webhook("attestation = [\"tpm\"]\ntpm_roots_stamp_identifier = true")),
        ("tpm and claimed", webhook("attestation = [\"tpm\"]\nidentity = \"claimed\"")),
        ("identity", webhook("identity = \"attestd\"")),
        ("field with attested", webhook("identity_field = \"san.dns\"")),
        ("unknown field", webhook("identity = \"claimed\"\nidentity_field = \"san.upn\"")),
        ("field that no certificate has", webhook("identity = \"certificate\"\nidentity_field = \"ssh.key_id\"")),
        ("no secret", secrets("")),
        ("empty list of secrets", secrets("secrets = []")),
        ("plain secret", secrets(&format!("secrets = [\"{SECRET}\"]"))),
        ("plain secret under a misspelt key", webhook(&format!("secret = \"{SECRET}\""))),
        ("secret with both", secrets("secrets = [{ file = \"a\", env = \"B\" }]")),
        ("secret with neither", secrets("secrets = [{ fil = \"a\" }]")),
        ("secret of another type", secrets("secrets = [1]")),
        ("secret with an impossible variable", secrets("secrets = [{ env = \"A=B\" }]")),
        ("ids of text", secrets("ids = [\"two\"]").replace(id, "")),
        ("ids without what they need", secrets("ids = [{ id = \"two\" }, { secret = { file = \"b\" } }, { idz = 1 }]").replace(id, "")),
        ("no ids", secrets("ids = []").replace(id, "")),
        ("ids that are no list", secrets("ids = \"two\"").replace(id, "")),
        ("ids beside id and secrets", webhook("ids = [{ id = \"two\", secret = { file = \"b\" } }]")),
        (
            "unsigned ids",
            secrets("unsigned = true\nids = [{ id = \"two\", secret = { file = \"b\" } }]").replace(id, "callers = [\"dns:ca\"]"),
        ),
        (
            "one id twice within ids",
            secrets("ids = [{ id = \"two\", secret = { file = \"a\" } },\n{ id = \"two\", secret = { file = \"b\" } }]").replace(id, ""),
        ),
        (
            "one id within ids and beside them",
            GOOD.replace(
                "[[webhook]]",
                "[[webhook]]\nids = [{ id = \"one\", secret = { file = \"a\" } }]\nproviders = [\"staff\"]\n[[webhook]]",
            ),
        ),
        (
            "a policy that names some of the ids",
            secrets("ids = [{ id = \"two\", secret = { file = \"a\" } }, { id = \"three\", secret = { file = \"b\" } }]")
                .replace(id, "")
                .replace("providers = [\"staff\"]", "policy = \"p\"")
                + "[policy.p]\nproviders = [\"staff\"]\nrequire = [{ expr = \"request.webhook == 'two'\", code = \"x\", message = \"y\" }]\n",
        ),
        ("unsigned with a secret", webhook("unsigned = true\ncallers = [\"dns:ca\"]")),
        ("unsigned without callers", secrets("unsigned = true")),
        (
            "unsigned without client_ca",
            with(ca, "").replace("secrets = [{ file = \"secrets/webhook\" }]", "unsigned = true\ncallers = [\"dns:ca\"]"),
        ),
        ("unsigned", secrets("unsigned = true\ncallers = [\"dns:ca\"]")),
        ("callers without client_ca", with(ca, "").replace(id, "id = \"one\"\ncallers = [\"dns:ca\"]")),
        ("no client_ca", with(ca, "")),
        ("caller rule", webhook("callers = [\"ca.example.org\", 1]")),
        ("pinned caller", webhook(&format!("callers = [\"sha256:{}\"]", "0".repeat(64)))),
        ("bearer", webhook(&format!("bearer = \"{SECRET}\""))),
        ("basic", webhook("basic = [{ username = \"a:b\" }, 1]")),
        ("window", webhook("window = { past = \"11m\", future = \"5\", now = 1 }")),
        ("deadline", webhook("deadline = \"3.9s\"")),
        ("deadline without a unit", webhook("deadline = 3500")),
        ("body limit", webhook("body_limit = 1023")),
        ("body limit beyond all numbers", webhook("body_limit = 99999999999999999999")),
        ("mode", webhook("mode = \"phone\"")),
        ("no providers", with("providers = [\"staff\"]", "")),
        ("empty providers", with("providers = [\"staff\"]", "providers = []")),
        ("unknown provider", with("providers = [\"staff\"]", "providers = [\"staf\", \"staff\", \"staff\"]")),
        (
            "provider asked by nobody",
            GOOD.replace("id = \"one\"", "id = \"one\"\nkind = \"notifying\"").replace("providers = [\"staff\"]", ""),
        ),
        ("providers of a notification", webhook("kind = \"notifying\"")),
        ("SCEP challenge", webhook("kind = \"scep_challenge\"").replace("providers = [\"staff\"]", "")),
        ("provider's name", GOOD.replace("staff", "Staff").replace("[provider.Staff]", "[provider.\"Staff\"]")),
        ("provider's type", with("type = \"file\"", "type = \"jampf\"")),
        ("provider without anything", with("type = \"file\"\npath = \"devices.json\"", "")),
        ("provider is no table", with("[provider.staff]\ntype = \"file\"\npath = \"devices.json\"", "[provider]\nstaff = 1")),
        ("format unknown", with("devices.json", "devices.txt")),
        ("wrong format", staff("format = \"xml\"")),
        ("share", staff("max_shrink = 10")),
        (
            "two webhooks with one id",
            GOOD.replace(
                "[provider.staff]",
                "[[webhook]]\nid = \"one\"\nsecrets = [{ env = \"S\" }]\nproviders = [\"staff\"]\n[provider.staff]",
            ),
        ),
    ];
    let mut text = String::new();
    for (name, toml) in cases {
        let outcome = outcome(parse(&toml));
        assert!(!outcome.contains(SECRET) && !outcome.contains("canary"), "{name}");
        let _ = write!(text, "{name}\n{}\n", outcome.lines().map(|line| format!("    {line}\n")).collect::<String>());
    }
    insta::assert_snapshot!("mistakes", text);
}

#[test]
fn every_kind_loads_and_only_those_that_ask_need_providers() {
    for (kind, alone) in [("enriching", false), ("authorizing", false), ("scep_challenge", true), ("notifying", true)] {
        let asking = with("id = \"one\"", &format!("id = \"one\"\nkind = \"{kind}\""));
        let webhook = parse(&asking).unwrap().config.webhooks.remove(0);
        assert_eq!((webhook.kind.as_str(), webhook.providers.len()), (kind, 1));
        let without = asking.replace("providers = [\"staff\"]", "");
        assert_eq!(parse(&without).is_ok(), alone, "{kind}");
    }
}

#[test]
fn every_field_that_a_source_has_loads_and_no_other() {
    for field in Field::ALL {
        let settings = |identity: &str| {
            let text = with("id = \"one\"", &format!("id = \"one\"\nidentity = \"{identity}\"\nidentity_field = \"{}\"", field.as_str()));
            parse(&text).ok().map(|loaded| loaded.config.webhooks[0].source)
        };
        let of_certificates = !matches!(field, Field::SanIp | Field::SshKeyId | Field::SshPrincipal);
        assert_eq!(settings("claimed"), Some(Source::Claimed(*field)));
        assert_eq!(settings("certificate"), of_certificates.then_some(Source::Certificate(*field)));
        assert_eq!(settings("attested"), None);
    }
}

#[test]
fn d10_the_principal_of_a_token_is_a_source_without_a_field() {
    let source =
        |lines: &str| parse(&with("id = \"one\"", &format!("id = \"one\"\n{lines}"))).map(|loaded| loaded.config.webhooks[0].source);
    assert_eq!(source("identity = \"principal\"").unwrap(), Source::Principal);
    let mistake = source("identity = \"principal\"\nidentity_field = \"subject.cn\"").unwrap_err().to_string();
    assert!(mistake.contains("the principal of a token has no field"), "{mistake}");
}

#[test]
fn a15_a_file_says_what_its_identifiers_are() {
    let of = |webhook: &str, file: &str| {
        let text =
            with("id = \"one\"", &format!("id = \"one\"\n{webhook}")).replace("type = \"file\"", &format!("type = \"file\"\n{file}"));
        let loaded = parse(&text).unwrap();
        let ProviderSettings::File(staff) = &loaded.config.providers["staff"] else { panic!("not a file") };
        let warned = loaded.warnings.iter().any(|warning| warning.to_string().contains("it has no device for this webhook"));
        (staff.identifier, warned)
    };
    assert_eq!(of("", ""), (IdentifierKind::Serial, false));
    assert_eq!(of("identifier = \"hostname\"", ""), (IdentifierKind::Serial, true));
    assert_eq!(of("identifier = \"hostname\"", "identifier = \"hostname\""), (IdentifierKind::Hostname, false));
    assert_eq!(of("", "identifier = \"udid\""), (IdentifierKind::Udid, true));
    assert_eq!(of("kind = \"notifying\"", "identifier = \"udid\"").0, IdentifierKind::Udid);
    let wrong = with("id = \"one\"", "id = \"one\"").replace("type = \"file\"", "type = \"file\"\nidentifier = \"serials\"");
    assert!(parse(&wrong).unwrap_err().to_string().contains("`serials` is not known"));
}

#[test]
fn d6_a_csv_file_says_which_column_it_is_and_a_json_file_has_none() {
    let column = |lines: &str, name: &str| {
        let loaded = parse(&with("type = \"file\"", &format!("type = \"file\"\n{lines}")).replace("devices.json", name))?;
        let ProviderSettings::File(staff) = &loaded.config.providers["staff"] else { panic!("not a file") };
        Ok::<_, Mistakes>(staff.identifier_column.clone())
    };
    assert_eq!(column("", "devices.csv"), Ok(None));
    assert_eq!(column("identifier_column = \" Serial Number \"", "devices.csv"), Ok(Some("Serial Number".to_owned())));
    for (lines, name, said) in [
        ("identifier_column = \" \"", "devices.csv", "write the header of the column"),
        ("identifier_column = 1", "devices.csv", "must be a string"),
        ("identifier_column = \"Serial Number\"", "devices.json", "`identifier_column` belongs to csv"),
    ] {
        let mistakes = column(lines, name).unwrap_err().to_string();
        assert!(mistakes.starts_with("stepward.toml:14:21: ") && mistakes.contains(said), "{mistakes}");
    }
}

#[test]
fn d5_placeholders_are_those_of_the_configuration_or_the_usual_ones() {
    let of = |line: &str| {
        let config = parse(&format!("{line}\n{GOOD}"))?.config;
        let ProviderSettings::File(staff) = &config.providers["staff"] else { panic!("not a file") };
        assert_eq!(staff.placeholders, config.placeholders, "the file is read by them");
        Ok::<_, Mistakes>(config.placeholders)
    };
    assert_eq!(of(""), Ok(Placeholders::default()));
    assert_eq!(of("placeholders = [\"spare\"]"), Ok(Placeholders::new(["SPARE"])));
    assert_eq!(of("placeholders = []"), Ok(Placeholders::new([""; 0])));
    for wrong in ["placeholders = \"None\"", "placeholders = [\" \"]", "placeholders = [0]"] {
        assert!(of(wrong).unwrap_err().to_string().contains("`placeholders`"), "{wrong}");
    }
    let example = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stepward.example.toml")).unwrap();
    let line = example.lines().find_map(|line| line.strip_prefix("# ").filter(|line| line.starts_with("placeholders"))).unwrap();
    assert_eq!(of(line), Ok(Placeholders::default()), "the example shows the usual ones");
}

#[test]
fn fills_in_the_defaults() {
    let config = parse(GOOD).unwrap().config;
    insta::assert_debug_snapshot!("defaults", config);
}

#[test]
fn loads_the_example_of_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stepward.example.toml");
    let loaded = Config::load(Some(&path), &env()).unwrap();
    assert_eq!(loaded.warnings, []);
    let webhook = &loaded.config.webhooks[0];
    assert_eq!(webhook.deadline, Duration::from_millis(3500));
    assert_eq!(webhook.callers, Callers::Named(vec![Name::Uri("spiffe://example.org/step-ca".into()), Name::Dns("ca.example.org".into())]));
    // With the `#` removed, every key of the example is known; the keys that exclude each other are the only mistakes.
    let all: String = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| {
            let key = line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with('['));
            format!("{}\n", key.unwrap_or(line))
        })
        .collect();
    let mistakes = parse(&all).unwrap_err();
    let texts = mistakes.to_string();
    assert_eq!(mistakes.0.len(), 7, "{texts}");
    for text in [
        "`path` and `url`",
        "`id` and `ids`",
        "`secrets` and `ids`",
        "`identity_field` belongs to",
        "`policy`",
        "`identifier_column` belongs to",
        "events have one proof",
    ] {
        assert!(texts.contains(text), "{text}: {texts}");
    }
}

#[test]
fn variables_override_single_values() {
    let env = env()
        .with("STEPWARD__LISTEN__ADMIN", "127.0.0.1:1")
        .with("STEPWARD__PROVIDER__STAFF__PATH", "/srv/other.csv")
        .with("STEPWARD__PROVIDER__STAFF__MAX_SHRINK", "0.5")
        .with("STEPWARD__WEBHOOK__0__DEADLINE", "2s")
        .with("STEPWARD__WEBHOOK__0__WINDOW__PAST", "10s")
        .with("STEPWARD__WEBHOOK__0__BODY_LIMIT", "2048")
        .with("STEPWARD__WEBHOOK__0__IDENTITY", "claimed")
        .with("STEPWARD__LOG__JSON", "true")
        .with("STEPWARD__STORE__RETENTION", "1d")
        .with("STEPWARD_CONFIG", "not this one");
    let config = Config::parse(GOOD, Path::new("stepward.toml"), &env).unwrap().config;
    assert_eq!(config.listen.admin.port(), 1);
    let ProviderSettings::File(staff) = &config.providers["staff"] else { panic!("not a file") };
    assert_eq!((staff.path.to_str(), staff.format, staff.max_shrink), (Some("/srv/other.csv"), Format::Csv, 0.5));
    let webhook = &config.webhooks[0];
    assert_eq!((webhook.deadline, webhook.window.past, webhook.body_limit), (Duration::from_secs(2), Duration::from_secs(10), 2048));
    assert_eq!(webhook.source, Source::Claimed(Field::SubjectCommonName));
    assert_eq!(config.log.json, Some(true));
    assert_eq!(config.store.retention, Duration::from_secs(86_400));
}

#[test]
fn variables_that_fit_nothing_are_mistakes() {
    let env = env()
        .with("STEPWARD__ADMIN", "1")
        .with("STEPWARD__LISTN__ADMIN", "1")
        .with("STEPWARD__LISTEN__ADMN", SECRET)
        .with("STEPWARD__LISTEN__SOCKETS__X", "1")
        .with("STEPWARD__REPLAY__MAX_ENTRIES", "many")
        .with("STEPWARD__PROVIDER__STAF__PATH", "x")
        .with("STEPWARD__PROVIDER__STAFF", "x")
        .with("STEPWARD__WEBHOOK__1__MODE", "computer")
        .with("STEPWARD__WEBHOOK__MODE", "computer")
        .with("STEPWARD__WEBHOOK__0__SECRETS", SECRET)
        .with("STEPWARD__WEBHOOK__0__CALLERS", "dns:ca");
    let text = outcome(Config::parse(&format!("[listen]\nsockets = \"run\"\n{GOOD}"), Path::new("stepward.toml"), &env));
    assert!(!text.contains(SECRET));
    insta::assert_snapshot!("overrides", text);
}

#[test]
fn an_empty_list_where_a_list_restricts_is_a_mistake_that_names_both_ways_out() {
    for key in ["callers", "bearer", "basic"] {
        let refused = parse(&with("providers = ", &format!("{key} = []\nproviders = "))).unwrap_err().to_string();
        assert_eq!(refused.lines().count(), 1, "{refused}");
        assert!(refused.contains(&format!("`{key}` is empty, and would restrict nothing: leave the line out to ")), "{refused}");
        assert!(refused.contains(&format!(", or name one, as in {key} = [")), "{refused}");
    }
    for key in ["groups_any", "groups_all", "groups_none", "require", "deny_if"] {
        let policy = format!("{GOOD}\n[policy.staff]\nproviders = [\"staff\"]\n{key} = []\n");
        let refused = parse(&policy).unwrap_err().to_string();
        assert!(refused.contains(&format!("`{key}` is empty, and would restrict nothing: ")), "{refused}");
    }
    // Without the line there is no restriction, as the documents say.
    assert_eq!(parse(GOOD).unwrap().config.webhooks[0].callers, Callers::AnyVerified);
}

/// Variables of step-posture-connector, in an empty folder.
fn connector(folder: &tempfile::TempDir) -> Environment {
    Environment::new(folder.path())
        .with("PROVIDER", "file")
        .with("TLS_CERT_PATH", "/tls/server.crt")
        .with("TLS_KEY_PATH", "/tls/server.key")
        .with("WEBHOOK_IDS", "one,two")
        .with("WEBHOOK_SECRETS", &format!("{SECRET}, c2Vjb25kLXNlY29uZC1zZWNvbmQ="))
        .with("FILE_PATH", "devices.txt")
        .with("FILE_TYPE", "csv")
}

#[test]
fn understands_the_variables_of_step_posture_connector() {
    let folder = tempfile::tempdir().unwrap();
    let env =
        connector(&folder).with("ENABLE_MTLS", "1").with("TLS_CA_PATH", "/tls/ca.crt").with("LOGGING_LEVEL", "2").with("TIMEOUT", "2");
    let Loaded { config, warnings, files, missing } = Config::load(None, &env).unwrap();
    // The file `.env` may come yet, and is watched for.
    let dotenv = vec![folder.path().join(".env")];
    assert_eq!((warnings, files, missing), (vec![], dotenv.clone(), dotenv));
    assert_eq!(config.envoy.webhook_address.to_string(), "0.0.0.0:9443");
    assert_eq!(config.envoy.client_ca.as_deref(), Some(Path::new("/tls/ca.crt")));
    assert_eq!(config.log.level, "debug");
    let ProviderSettings::File(file) = &config.providers["file"] else { panic!("not a file") };
    assert_eq!((file.path.clone(), file.format), (folder.path().join("devices.txt"), Format::Csv));
    let ids: Vec<_> = config.webhooks.iter().map(|webhook| webhook.id.as_str()).collect();
    assert_eq!(ids, ["one", "two"]);
    let webhook = &config.webhooks[0];
    assert_eq!(
        (webhook.deadline, webhook.mode, &webhook.callers),
        (Duration::from_secs(2), Some(Mode::MobileDevice), &Callers::AnyVerified)
    );
    let secrets = config.resolve_secrets(&env).unwrap();
    assert_eq!(secrets.webhooks[0].signing, [Secret::new(b"canary-canary-canary-canary".to_vec())]);
    assert_eq!(secrets.webhooks[1].signing, [Secret::new(b"second-second-second".to_vec())]);
}

/// Variables of step-posture-connector with Jamf Pro for a provider.
fn jamf(folder: &tempfile::TempDir) -> Environment {
    connector(folder)
        .with("PROVIDER", "jamf")
        .with("JAMF_BASE_URL", "https://example.jamfcloud.com")
        .with("JAMF_CLIENT_ID", "client")
        .with("JAMF_CLIENT_SECRET", "canary-of-jamf")
}

#[test]
fn understands_the_variables_of_jamf() {
    let folder = tempfile::tempdir().unwrap();
    let read = |env: &Environment| {
        let Loaded { config, .. } = Config::load(None, env).unwrap();
        assert!(config.webhooks.iter().all(|webhook| webhook.providers == ["jamf"]));
        let secrets = config.resolve_secrets(env).unwrap();
        assert_eq!(secrets.providers["jamf"], [Secret::new(b"canary-of-jamf".to_vec())]);
        assert!(!format!("{config:?}{secrets:?}").contains("canary-of-jamf"));
        let ProviderSettings::Remote(remote) = &config.providers["jamf"] else { panic!("not a service") };
        assert_eq!(remote.endpoint.base_url.as_str(), "https://example.jamfcloud.com/");
        let Service::Jamf(settings) = &remote.service else { panic!("not Jamf Pro") };
        assert_eq!(settings.client_id, "client");
        settings.clone()
    };
    let plain = read(&jamf(&folder));
    assert_eq!((plain.device_group, plain.computer_group), (None, None));
    assert_eq!((plain.device_enrich, plain.computer_enrich), (false, false));
    assert!(plain.mode_is_binding, "a13: the connector asks one inventory by the mode, and never the other one");
    let all = jamf(&folder)
        .with("JAMF_DEVICE_GROUP", "Fit phones")
        .with("JAMF_COMPUTER_GROUP", "Fit Macs")
        .with("JAMF_DEVICE_ENRICH", "0")
        .with("JAMF_COMPUTER_ENRICH", "1");
    let all = read(&all);
    assert_eq!((all.device_group.as_deref(), all.computer_group.as_deref()), (Some("Fit phones"), Some("Fit Macs")));
    assert_eq!((all.device_enrich, all.computer_enrich), (false, true));
}

#[test]
fn the_environment_wins_over_the_dotenv_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "export PORT='1'\nFILE_TYPE=json # not this\nLOGGING_LEVEL=1\n").unwrap();
    let loaded = Config::load(None, &connector(&folder).with("PORT", "2")).unwrap();
    assert_eq!(loaded.config.envoy.webhook_address.port(), 2);
    assert_eq!(loaded.config.log.level, "info,sidecar=debug");
    assert_eq!(loaded.files, [folder.path().join(".env")]);
    let ProviderSettings::File(file) = &loaded.config.providers["file"] else { panic!("not a file") };
    assert_eq!(file.format, Format::Csv);
}

#[test]
fn names_every_mistake_in_the_variables() {
    let folder = tempfile::tempdir().unwrap();
    let good = || connector(&folder);
    let cases = [
        ("nothing", Environment::new(folder.path())),
        ("nothing else", Environment::new(folder.path()).with("PROVIDER", "file")),
        ("no mTLS", good()),
        ("no mTLS, and an authority", good().with("ENABLE_MTLS", "0").with("TLS_CA_PATH", "ca")),
        ("mTLS without an authority", good().with("ENABLE_MTLS", "1")),
        ("words for numbers", good().with("ENABLE_MTLS", "yes").with("PORT", "https").with("LOGGING_LEVEL", "3").with("TIMEOUT", "0")),
        ("jamf", jamf(&folder)),
        ("jamf, and nothing of it", good().with("PROVIDER", "jamf")),
        ("jamf without TLS", jamf(&folder).with("JAMF_BASE_URL", "http://example.jamfcloud.com")),
        ("jamf, and words for flags", jamf(&folder).with("JAMF_DEVICE_ENRICH", "yes").with("JAMF_COMPUTER_ENRICH", "true")),
        ("jamf, and a blank group", jamf(&folder).with("JAMF_COMPUTER_GROUP", " ")),
        ("unknown provider", good().with("PROVIDER", "intune")),
        ("file type", good().with("FILE_TYPE", "xml")),
        ("too few secrets", good().with("WEBHOOK_SECRETS", SECRET)),
        ("empty secret", good().with("WEBHOOK_SECRETS", &format!("{SECRET},"))),
        ("empty id", good().with("WEBHOOK_IDS", "one,")),
        ("one id twice", good().with("WEBHOOK_IDS", "one,one")),
        ("long time-out", good().with("TIMEOUT", "10")),
    ];
    let mut text = String::new();
    for (name, env) in cases {
        let outcome = outcome(Config::load(None, &env));
        assert!(!outcome.contains(SECRET) && !outcome.contains("canary"), "{name}");
        let _ = write!(text, "{name}\n{}\n", outcome.lines().map(|line| format!("    {line}\n")).collect::<String>());
    }
    insta::assert_snapshot!("connector", text);
}

#[test]
fn a13_a_dotenv_file_that_others_may_read_is_warned_of_where_it_has_secrets() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    let warned = |text: &str, mode| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let loaded = Config::load(None, &connector(&folder)).unwrap();
        loaded.warnings.iter().any(|warning| warning.to_string().ends_with(".env has secrets and can be read by every user: chmod o-r"))
    };
    let secret = format!("WEBHOOK_SECRETS={SECRET}\n");
    assert_eq!([warned(&secret, 0o604), warned(&secret, 0o640), warned("PORT=1\n", 0o644)], [true, false, false]);
}

#[test]
fn a_bad_dotenv_file_is_named_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), format!("PROVIDER=file\n{SECRET}\n")).unwrap();
    assert_eq!(Config::load(None, &Environment::new(folder.path())).unwrap_err().to_string(), ".env:2:1: is not NAME=value");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let mistakes = Config::load(Some(Path::new("/nowhere/stepward.toml")), &env()).unwrap_err();
    assert_eq!(mistakes.to_string(), "/nowhere/stepward.toml: cannot be read: No such file or directory (os error 2)");
}

fn with_secrets(lines: &[&str]) -> Config {
    let webhooks: String = lines
        .iter()
        .enumerate()
        .map(|(number, line)| format!("[[webhook]]\nid = \"{number}\"\nproviders = [\"staff\"]\n{line}\n"))
        .collect();
    let (before, rest) = GOOD.split_once("[[webhook]]").unwrap();
    let (_, after) = rest.split_once("[provider").unwrap();
    parse(&format!("{before}{webhooks}[provider{after}")).unwrap().config
}

#[test]
fn refuses_secrets_that_cannot_be_used() {
    let config = with_secrets(&[
        "secrets = [{ env = \"A\" }, { env = \"UNSET\" }]",
        "secrets = [{ env = \"SAME\" }]",
        "secrets = [{ env = \"PLAIN\" }]",
        "secrets = [{ env = \"BLANK\" }]",
        "secrets = [{ file = \"/nowhere/secret\" }]",
        "secrets = [{ env = \"OTHER\" }]\nbearer = { env = \"UNSET\" }\nbasic = { username = \"u\", password = { env = \"BLANK\" } }",
        "secrets = [{ env = \"ZEROS\" }]",
        "secrets = [{ env = \"PADDED\" }]",
    ]);
    let env = env()
        .with("ZEROS", "AAA=")
        // `OTHER` and a zero byte, which to HMAC is the same key.
        .with("PADDED", "b3RoZXItb3RoZXItb3RoZXIA")
        .with("A", SECRET)
        .with("SAME", &format!("{SECRET}\n"))
        .with("PLAIN", "canary!")
        .with("BLANK", " \n")
        .with("OTHER", "b3RoZXItb3RoZXItb3RoZXI=");
    let text = config.resolve_secrets(&env).unwrap_err().to_string();
    assert!(!text.contains("canary") && !text.contains(SECRET), "{text}");
    insta::assert_snapshot!("secrets", text);
}

#[test]
fn e4_each_of_several_ids_is_a_webhook_with_the_secret_that_is_its_own() {
    let text = with(
        "secrets = [{ file = \"secrets/webhook\" }]",
        "ids = [{ id = \"new\", secret = { env = \"NEW\" } }, { id = \"old\", secret = { env = \"OLD\" } }]\nbearer = [{ env = \"TOKEN\" }]\ndeadline = \"2s\"",
    );
    let config = parse(&text.replace("id = \"one\"", "")).unwrap().config;
    let ids = |config: &Config| config.webhooks.iter().map(|webhook| webhook.id.clone()).collect::<Vec<_>>();
    assert_eq!((ids(&config), config.tables()), (vec!["new".to_owned(), "old".to_owned()], vec![vec!["new", "old"]]));
    assert!(config.webhooks.iter().all(|webhook| webhook.deadline == Duration::from_secs(2) && webhook.providers == ["staff"]));
    let env = env().with("NEW", SECRET).with("OLD", "b3RoZXItb3RoZXItb3RoZXI=").with("TOKEN", "t");
    let secrets = config.resolve_secrets(&env).unwrap().webhooks;
    let signing: Vec<_> =
        secrets.iter().map(|webhook| (&*webhook.id, webhook.signing.iter().map(Secret::expose).collect::<Vec<_>>())).collect();
    assert_eq!(signing, [("new", vec![b"canary-canary-canary-canary".as_slice()]), ("old", vec![b"other-other-other".as_slice()])]);
    assert!(secrets.iter().all(|webhook| webhook.credentials.values().iter().map(Secret::expose).eq([b"Bearer t"])));
    // Bytes that were signed for one webhook would be good for the other.
    let same = config.resolve_secrets(&env.with("OLD", SECRET)).unwrap_err().to_string();
    assert!(same.contains("webhooks `new` and `old` have the same secret"), "{same}");
    // Another table is another webhook, whose share of the replay memory is its own.
    let two = text.replace("id = \"one\"", "").replacen(
        "[provider",
        "[[webhook]]\nid = \"three\"\nsecrets = [{ env = \"A\" }]\nproviders = [\"staff\"]\n[provider",
        1,
    );
    let config = parse(&two).unwrap().config;
    assert_eq!((ids(&config).len(), config.tables().len()), (3, 2));
    assert_eq!(config.ids_beside(&config.webhooks[1]).collect::<Vec<_>>(), ["new", "old"]);
    assert_eq!(config.ids_beside(&config.webhooks[2]).collect::<Vec<_>>(), ["three"]);
}

#[test]
fn refuses_secrets_in_what_is_no_file() {
    for path in ["/dev/zero", "/"] {
        let error = with_secrets(&[&format!("secrets = [{{ file = \"{path}\" }}]")]).resolve_secrets(&env()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}

#[test]
fn reads_secrets_and_credentials_without_their_line_ends() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\r\n")).unwrap();
    let shown = file.display();
    let config = with_secrets(&[&format!(
        "secrets = [{{ file = \"{shown}\" }}]\nbearer = {{ env = \"TOKEN\" }}\nbasic = [{{ username = \"u\", password = {{ env = \"TOKEN\" }} }}]"
    )]);
    let env = env().with("TOKEN", "t\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let secrets = config.resolve_secrets(&env).unwrap();
    assert_eq!(secrets.warnings, []);
    assert_eq!(secrets.webhooks[0].signing[0].expose(), b"canary-canary-canary-canary");
    let values: Vec<_> = secrets.webhooks[0].credentials.values().iter().map(Secret::expose).collect();
    assert_eq!(values, [b"Bearer t".as_slice(), b"Basic dTp0"]);
    assert_eq!(config.watched_files(), [PathBuf::from("/etc/stepward/devices.json"), file.clone()]);

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = config.resolve_secrets(&env).unwrap().warnings;
    assert_eq!(
        warnings[0].to_string(),
        format!("webhook `0`: secret in {shown}: every user of this machine can read the file; run chmod o= on it")
    );
}

#[test]
fn a_secret_is_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let env = connector(&folder);
    let loaded = Config::load(None, &env).unwrap();
    let secrets = loaded.config.resolve_secrets(&env).unwrap();
    let printed = format!("{env:?}{loaded:#?}{secrets:?}");
    assert!(!printed.contains(SECRET) && !printed.contains("canary"), "{printed}");
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "(?s).{0,300}", line in 0..40_usize, junk in "[\\[\\]{}=\"'a-z0-9.# \n]{0,20}") {
        let _ = parse(&text);
        let mut lines: Vec<&str> = GOOD.lines().collect();
        lines.insert(line.min(lines.len()), &junk);
        let _ = parse(&lines.join("\n"));
    }
}

#[test]
fn the_store_is_where_the_file_says_else_where_systemd_says_else_beside_the_configuration() {
    let read = |lines: &str, env: &Environment| {
        Config::parse(&format!("{GOOD}[store]\n{lines}\n"), Path::new("stepward.toml"), env).map(|loaded| loaded.config.store)
    };
    let under_systemd = env().with("STATE_DIRECTORY", "/var/lib/stepward:/var/lib/other");
    for (lines, env, path) in [
        ("", env(), Some("/etc/stepward/state/stepward.db")),
        ("", under_systemd.clone(), Some("/var/lib/stepward/stepward.db")),
        ("path = \"other.db\"", under_systemd, Some("/etc/stepward/other.db")),
        ("path = \"/srv/stepward.db\"\nenabled = true", env(), Some("/srv/stepward.db")),
        ("enabled = false", env(), None),
    ] {
        assert_eq!(read(lines, &env).unwrap().path.as_deref(), path.map(Path::new), "{lines}");
    }
    let store = read("retention = \"30m\"\nmax_decisions = 5", &env()).unwrap();
    assert_eq!((store.retention, store.max_decisions), (Duration::from_secs(1800), 5));
    for (lines, said) in [
        ("path = \"\"", "`path`: is not a path"),
        ("retention = \"29m\"", "`retention`: must be from 30m to 3660d"),
        ("max_decisions = 0", "`max_decisions`: must be from 1 to 1000000000 decisions"),
        ("retain = 1", "`store` has no key `retain`"),
    ] {
        let mistakes = read(lines, &env()).unwrap_err().to_string();
        assert!(mistakes.contains(said), "{mistakes}");
    }
}

#[test]
fn a_store_on_a_server_has_its_password_elsewhere_and_its_limits() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("database"), "hunter2\n").unwrap();
    let read = |lines: &str| {
        let text = format!("{GOOD}[store]\n{}\n", lines.replace("DIR", &folder.path().display().to_string()));
        Config::parse(&text, Path::new("stepward.toml"), &env()).map(|loaded| loaded.config)
    };
    let url = "url = \"postgres://stepward@db.example.org/stepward\"";
    let config = read(&format!("{url}\npassword = {{ file = \"DIR/database\" }}\nstale_limit = \"10s\"\nname = \"berlin\"")).unwrap();
    assert_eq!((config.store.path.as_deref(), config.store.sharing.name.as_str()), (None, "berlin"));
    assert_eq!(config.store.sharing.stale_limit, Duration::from_secs(10));
    assert_eq!(config.secret_files().last(), Some(&folder.path().join("database")));
    let server = || store::Server::parse("postgres://stepward@db.example.org/stepward", None).unwrap();
    assert_eq!(config.store.server, Some(server()));
    let (with_password, warnings) = config.store_with_password(&env()).unwrap();
    let expected = server().with_password(Secret::new(b"hunter2".to_vec())).unwrap();
    assert_eq!((with_password.server.as_ref(), warnings.len()), (Some(&expected), 1), "everybody may read the file");
    assert!(!format!("{config:?}{with_password:?}{warnings:?}").contains("hunter2"));
    let defaults = read(url).unwrap();
    assert_eq!(defaults.store.sharing, store::Sharing { name: String::new(), stale_limit: Duration::from_secs(60) });
    let (without, _) = defaults.store_with_password(&env()).unwrap();
    assert!(
        without.server == defaults.store.server && !without.sharing.name.is_empty(),
        "a server may ask for none, and a machine has a name"
    );
    let gone = read(&format!("{url}\npassword = {{ file = \"/nowhere/database\" }}")).unwrap();
    let said = gone.store_with_password(&env()).unwrap_err().to_string();
    assert!(said.contains("[store]: password in /nowhere/database: cannot be read"), "{said}");
    for (lines, said) in [
        ("url = \"mysql://a@b/c\"", "`url`: is no URL of PostgreSQL: write postgres://USER@HOST/DATABASE"),
        ("url = \"postgres://a:hunter2@b/c\"", "`url`: has a password, which everybody may read there"),
        (
            "url = \"postgres://a@b/c\"\npath = \"state/stepward.db\"",
            "`path` and `url` stand there, and a store is in one place: remove either",
        ),
        ("password = { env = \"DATABASE\" }", "`password` is for a store on a server: write url = "),
        ("stale_limit = \"10s\"", "`stale_limit` is for a store on a server: write url = "),
        ("name = \"berlin\"", "`name` is for a store on a server: write url = "),
        ("url = \"postgres://a@b/c\"\nstale_limit = \"4s\"", "`stale_limit`: must be from 5s to 1h"),
        ("url = \"postgres://a@b/c\"\nname = \"\"", "`name`: has to have 1 to 200 bytes"),
        ("url = \"postgres://a@b/c\"\npassword = \"hunter2\"", "`password`: a secret does not stand in the configuration itself"),
    ] {
        let mistakes = read(lines).unwrap_err().to_string();
        assert!(mistakes.contains(said) && !mistakes.contains("hunter2"), "{lines}: {mistakes}");
    }
    assert_eq!(read(&format!("enabled = false\n{url}")).unwrap().store.server, None);
}

/// Finding a place must not take as long as reading all that stands before it: seconds here instead of a few milliseconds.
#[test]
fn g12_ten_thousand_wrong_webhooks_are_reported_with_their_places() {
    let text = "[[webhook]]\nkind = \"x\"\n".repeat(10_000);
    let mistakes = Config::parse(&text, "stepward.toml".as_ref(), &Environment::new("/etc/stepward")).unwrap_err().0;
    let kinds: Vec<_> =
        mistakes.iter().filter(|mistake| mistake.message.starts_with("`kind`")).map(|mistake| mistake.place.clone()).collect();
    assert_eq!(kinds.len(), 10_000);
    assert_eq!((kinds.first(), kinds.last()), (Some(&Place::Line(2, 8)), Some(&Place::Line(20_000, 8))));
}

/// Returns the mistakes of a configuration, as they are reported.
fn said(text: &str) -> Vec<String> {
    match Config::parse(text, Path::new("stepward.toml"), &Environment::new("/etc")) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn e38_one_bracket_that_is_missing_is_one_mistake() {
    let above = "a list or a table in braces above has no end: write ] or } behind its last entry";
    for (from, to, expected) in [
        ("providers = [\"staff\"]", "providers = [\"staff\"", format!("stepward.toml:12:1: {above}")),
        ("providers = [\"staff\"]", "providers = [\n  \"staff\",\n", format!("stepward.toml:14:2: {above}")),
        ("secrets = [{ file = \"secrets/webhook\" }]", "secrets = [{ file = \"secrets/webhook\" }", format!("stepward.toml:10:1: {above}")),
        (
            "secrets = [{ file = \"secrets/webhook\" }]",
            "secrets = [{ file = \"secrets/webhook\" ]",
            "stepward.toml:9:39: invalid inline table element, expected `,`".to_owned(),
        ),
        (
            "secrets = [{ file = \"secrets/webhook\" }]",
            "secrets = { file = \"secrets/webhook\" }]",
            "stepward.toml:9:39: unexpected key or value, expected newline, `#`".to_owned(),
        ),
        ("[[webhook]]", "[[webhook]", "stepward.toml:7:11: unclosed array table, expected `]`".to_owned()),
    ] {
        assert_eq!(said(&with(from, to)), [expected], "{to}");
    }
    // Mistakes before it are reported as well.
    assert_eq!(said("a =\nb = [1\n[c]\nd = 1\n").len(), 2);
}

#[test]
fn e11_one_quote_that_is_missing_is_one_mistake() {
    for (from, to) in [
        ("id = \"one\"", "id = \"one"),
        ("id = \"one\"", "id = one\""),
        ("id = \"one\"", "id = 'one"),
        ("id = \"one\"", "id = one"),
        ("secrets = [{ file = \"secrets/webhook\" }]", "secrets = [{ file = \"secrets/webhook }]"),
        ("secrets = [{ file = \"secrets/webhook\" }]", "secrets = [{ file = secrets/webhook\" }]"),
        ("secrets = [{ file = \"secrets/webhook\" }]", "secrets = [{ file = 'secrets/webhook }]"),
        ("providers = [\"staff\"]", "providers = [\"staff]"),
        ("providers = [\"staff\"]", "providers = [\n  \"staff,\n]"),
        ("id = \"one\"", "id = \"\"\"one"),
    ] {
        let found = said(&with(from, to));
        assert!(matches!(&found[..], [one] if one.starts_with("stepward.toml:")), "{to}: {found:#?}");
    }
    // Where the open text ends with its line, other mistakes are reported as well.
    let found = said("a = \"x\n[c\nd = 1\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("has no closing \": write one behind it"), "{found:#?}");
}

#[test]
fn e11_a_key_in_the_wrong_table_is_sent_where_it_belongs() {
    let policy = |line: &str| format!("{GOOD}\n[policy.one]\nproviders = [\"staff\"]\n{line}\n");
    for (text, words) in [
        (policy("enforcement = \"observe\""), "[policy.one] has no key `enforcement`; it belongs to [[webhook]]"),
        (with("id = \"one\"", "id = \"one\"\nmanaged = true"), "[[webhook]] has no key `managed`; it belongs to [policy.NAME]"),
        (with("type = \"file\"", "type = \"file\"\npositive = \"1m\""), "it belongs to [provider.NAME.cache]"),
        (with("[envoy]", "[envoy]\nsockets = \"run\""), "it belongs to [listen]"),
        (policy("enforcemnt = \"observe\""), "[policy.one] has no key `enforcemnt`; there are "),
    ] {
        let found = said(&text);
        assert!(found.iter().any(|one| one.contains(words)), "{words}: {found:#?}");
    }
}

#[test]
fn e11_a_duration_that_is_none_is_answered_by_one_of_its_size() {
    let policy = |text: &str| format!("{GOOD}\n[policy.one]\nproviders = [\"staff\"]\nmax_silence = \"{text}\"\n");
    for (text, words) in [
        (policy("two weeks"), "`max_silence`: `two weeks` is not a duration; write 14d, 12h or 30m"),
        (policy("1M"), "`max_silence`: `1M`: months and years have no fixed length: write days, as in 30d or 365d, and m for minutes"),
        (policy("1y"), "no fixed length"),
        (with("id = \"one\"", "id = \"one\"\ndeadline = \"3\""), "`deadline`: `3` is not a duration; write 30s, 3500ms or 3.5s"),
    ] {
        let found = said(&text);
        assert!(matches!(&found[..], [one] if one.contains(words)), "{words}: {found:#?}");
    }
}

#[test]
fn e10_two_listeners_of_the_service_have_an_address_each_and_sockets_a_path_that_fits_wherever_they_are() {
    let query = |address: &str| {
        with(
            "[envoy]",
            &format!(
                "[query]\naddress = \"{address}\"\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[query.client]]\nnames = [\"dns:a\"]\nroles = [\"check\"]\n[envoy]"
            ),
        )
    };
    for (address, taken) in
        [("127.0.0.1:9464", true), ("0.0.0.0:9464", true), ("[::]:9464", true), ("127.0.0.2:9464", false), ("127.0.0.1:9445", false)]
    {
        let found = said(&query(address));
        assert_eq!(found.iter().any(|one| one.contains("is taken by `admin` in [listen], which is 127.0.0.1:9464")), taken, "{found:#?}");
    }
    let both = |filter: &str| {
        let files = "certificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"";
        query("127.0.0.1:9445").replacen("[query]", &format!("[filter]\naddress = \"{filter}\"\n{files}\nnames = [\"dns:a\"]\n[query]"), 1)
    };
    for (filter, words) in [
        ("0.0.0.0:9445", "is taken by `address` in [query], which is 127.0.0.1:9445"),
        ("0.0.0.0:9464", "is taken by `admin` in [listen], which is 127.0.0.1:9464"),
    ] {
        let found = said(&both(filter));
        assert!(found.iter().any(|one| one.contains(words)), "{found:#?}");
    }
    assert_eq!(said(&both("127.0.0.1:9446")), [""; 0]);
    // Without [listen] the folder of the configuration decides.
    let deep = format!("/{}", "x".repeat(100));
    let found = Config::parse(GOOD, Path::new("stepward.toml"), &Environment::new(&deep)).unwrap_err();
    assert!(found.to_string().contains("and 107 are possible; choose a shorter folder"), "{found}");
}

#[test]
fn a_service_is_found_by_a_configuration_with_mistakes_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    let found = |text: &str| {
        std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
        let (listen, mistakes) = Config::listening(Some(Path::new("stepward.toml")), &env).ok()?;
        Some((listen.socket("admin").strip_prefix(folder.path()).unwrap().to_owned(), listen.admin.port(), mistakes.is_some()))
    };
    let listen = "[listen]\nsockets = \"elsewhere\"\nadmin = \"127.0.0.1:9999\"\n";
    let good = with("[envoy]", &format!("{listen}[envoy]"));
    let there = |wrong: bool| Some((PathBuf::from("elsewhere/admin.sock"), 9999, wrong));
    assert_eq!(found(&good), there(false));
    assert_eq!(found(&good.replace("providers", "provders")), there(true));
    assert_eq!(found(listen), there(true));
    assert_eq!(found(&format!("{listen}role_folders = 1\n")), None, "what is wrong with [listen] itself is guessed by nobody");
    assert_eq!(found(&format!("{listen}x = \"")), None);
    assert_eq!(found(&good.replace("[listen]", "[lisetn]")), None, "nor where it is misspelt");
}

#[test]
fn e29_a_webhook_is_chosen_by_its_id_or_its_name_and_no_two_have_one_name() {
    let webhook = |id: &str, name: &str| {
        format!(
            "[[webhook]]\nid = \"{id}\"\nname = \"{name}\"\nsecrets = [{{ env = \"A\" }}]\ncallers = [\"dns:a\"]\nproviders = [\"staff\"]\n"
        )
    };
    let read = |webhooks: &[String]| {
        let envoy = "[envoy]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"\n";
        let text = format!("{envoy}{}[provider.staff]\ntype = \"file\"\npath = \"d.csv\"\n", webhooks.concat());
        Config::parse(&text, Path::new("stepward.toml"), &Environment::new("/"))
            .map(|loaded| loaded.config)
            .map_err(|mistakes| mistakes.to_string())
    };
    let config = read(&[webhook("one", "laptops"), webhook("two", "phones")]).unwrap();
    let called = |given: &str| config.webhooks_called(given).map(|webhook| webhook.id.clone()).collect::<Vec<_>>();
    assert_eq!((called("two"), called("laptops"), called("tablets")), (vec!["two".to_owned()], vec!["one".to_owned()], Vec::new()));
    assert_eq!(config.webhooks[0].shown(), "laptops (one)");
    assert_eq!(config.no_webhook("phone"), "there is no webhook `phone`; did you mean `phones`?");
    let several = webhook("one", "laptops")
        .replace("id = \"one\"", "ids = [{ id = \"one\", secret = { env = \"A\" } }, { id = \"next\", secret = { env = \"B\" } }]");
    let several = several.replace("secrets = [{ env = \"A\" }]\n", "");
    assert_eq!(read(&[several]).unwrap().webhooks_called("laptops").count(), 2, "all ids of one have its name");
    for (webhooks, said) in [
        ([webhook("one", "a"), webhook("two", "a")], "the name `a` stands in two [[webhook]]"),
        ([webhook("one", "two"), webhook("two", "b")], "`two` is the id of a webhook and the name of one"),
        ([webhook("one", "my laptops"), webhook("two", "b")], "is not a name: 1 to 64 letters"),
    ] {
        let mistakes = read(&webhooks).unwrap_err();
        assert!(mistakes.contains(said), "{mistakes}");
    }
}

#[test]
fn a13_a_variable_of_the_connector_that_is_not_text_is_a_mistake_and_lifts_no_rule() {
    let not_text = || OsString::from_vec(vec![b'B', 0xfc]);
    let names = ["PROVIDER", "JAMF_COMPUTER_GROUP", "TLS_CA_PATH", "ENABLE_MTLS", "WEBHOOK_SECRETS", "TIMEOUT", "STATE_DIRECTORY"];
    for name in names {
        let mut env = Environment::of("/nowhere", [(name.into(), not_text())].into_iter());
        let others = [("PROVIDER", "jamf"), ("JAMF_BASE_URL", "https://example.org"), ("JAMF_CLIENT_ID", "id"), ("ENABLE_MTLS", "1")];
        for (other, value) in others.into_iter().filter(|(other, _)| *other != name) {
            env = env.with(other, value);
        }
        let mistakes = Config::load(None, &env).unwrap_err().to_string();
        assert_eq!(mistakes.matches(&format!("{name}: is not text in UTF-8")).count(), 1, "{name}: {mistakes}");
    }
}

#[test]
fn g12_a_variable_that_is_not_text_is_a_mistake_that_names_it() {
    let not_text = || OsString::from_vec(vec![b'9', 0xff]);
    let variables = [("STEPWARD__LISTEN__ADMIN".into(), not_text()), ("LANG".into(), not_text()), ("HOME".into(), "/root".into())];
    let env = Environment::of("/etc/stepward", variables.into_iter());
    assert_eq!(env.variable("HOME"), Some("/root"));
    let mistakes = Config::parse("", "stepward.toml".as_ref(), &env).unwrap_err().to_string();
    assert!(mistakes.contains("STEPWARD__LISTEN__ADMIN: is not text in UTF-8"), "{mistakes}");
    assert!(!mistakes.contains("LANG"), "{mistakes}");
}
