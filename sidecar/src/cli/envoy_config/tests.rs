//! Bootstraps for many configurations, held against the templates, the units and Compose's file.

use std::collections::{BTreeMap, BTreeSet};

use super::bootstrap::{BOOTSTRAP, CAPABILITIES, LOG_LINES, OUTWARD_CONNECTIONS};
use super::*;

const CONFIG: &str = r#"
[listen]
sockets = "run"
[envoy]
webhook_address = "127.0.0.1:9443"
certificate = "tls/ser\"ver: {}.crt"
private_key = "tls/server.key"
client_ca = "ca/${socket}.crt"
wasm = "dist/stepward_filter.wasm"
[[webhook]]
id = "one"
secrets = [{ env = "ONE" }]
deadline = "2s"
body_limit = 4096
providers = ["staff"]
[[webhook]]
id = "two"
secrets = [{ env = "TWO" }]
deadline = "3s"
body_limit = 131072
providers = ["staff"]
[provider.staff]
type = "file"
path = "devices.json"
"#;

fn env() -> Environment {
    Environment::new("/etc/stepward")
}

/// Tables for events of a device management, for which there is a second listener.
const PUSH: &str = r#"
[provider.events]
type = "http"
base_url = "https://inventory.example.org"
path = "/devices/{identifier}"
identifier = "/serial"
[provider.events.push]
secret = { env = "EVENTS" }
"#;

fn rendered(text: &str, admin: Option<&str>) -> Rendered {
    try_rendered(text, admin).unwrap()
}

fn try_rendered(text: &str, admin: Option<&str>) -> Result<Rendered, Unusable> {
    let config = Config::parse(text, Path::new("stepward.toml"), &env()).unwrap().config;
    let admin = admin.map(|admin| Admin::parse(admin, &env().directory)).transpose()?;
    render(&config, &Options { admin, ..Options::new("/run/sds") })
}

#[test]
fn c_a_link_in_the_folder_of_another_user_is_not_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let (path, victim) = (folder.path().join("envoy.yaml"), folder.path().join("victim"));
    std::fs::write(&victim, "before").unwrap();
    for link in ["envoy.yaml.new", "envoy.yaml"] {
        std::os::unix::fs::symlink(&victim, folder.path().join(link)).unwrap();
    }
    replace(&path, "after").unwrap();
    assert_eq!((std::fs::read_to_string(&victim).unwrap(), std::fs::read_to_string(&path).unwrap()), ("before".into(), "after".into()));
    assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    // Nothing is left behind where the file cannot be written.
    let other = folder.path().join("folder");
    std::fs::create_dir_all(other.join("inner")).unwrap();
    assert!(replace(&other, "after").is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn e37_a_key_that_envoy_could_not_serve_with_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    let init = crate::cli::init::InitArgs::new(folder.path().join("demo"));
    crate::cli::init::run(&init, &env, &mut Vec::new()).unwrap();
    let print = || {
        let args = EnvoyConfigArgs {
            config: Some("demo/stepward.toml".into()),
            output: None,
            sds_dir: None,
            admin: None,
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        run(&args, &env, &mut out, &mut errors).map_err(|error| error.to_string())?;
        Ok::<_, String>((out.len(), String::from_utf8(errors).unwrap()))
    };
    let sds = folder.path().join("demo/run/sds");
    let key = folder.path().join("demo/tls/server.key");
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = print().unwrap_err();
    assert!(error.contains("tls/server.key: is not the key of ") && error.ends_with("Envoy would end every connection"), "{error}");
    std::fs::write(&key, "nothing").unwrap();
    assert!(print().unwrap_err().contains("tls/server.key: no private key can be read"));
    std::fs::remove_file(&key).unwrap();
    std::fs::create_dir(&key).unwrap();
    let error = print().unwrap_err();
    assert!(error.contains("tls/server.key cannot be read by `") && error.contains("is not a regular file"), "{error}");
    assert!(!sds.exists());
    // A file that is not there yet may come later. The note says where the files went.
    std::fs::remove_dir(&key).unwrap();
    let (printed, errors) = print().unwrap();
    assert!(printed > 0 && errors.contains("server.key is not there yet"), "{errors}");
    assert!(errors.contains(&format!("note: the files that it names were written into {}", sds.display())), "{errors}");
}

#[test]
fn prints_a_bootstrap_with_client_certificates() {
    let Rendered { bootstrap, sds } = rendered(CONFIG, Some("./envoy-admin.sock"));
    let files: String = sds.iter().map(|(path, text)| format!("--- {}\n{text}", path.display())).collect();
    insta::assert_snapshot!("mtls", format!("{bootstrap}{files}"));
}

#[test]
fn asks_for_no_client_certificate_without_an_authority() {
    let Rendered { bootstrap, sds } = rendered(&CONFIG.replace("client_ca = \"ca/${socket}.crt\"\n", ""), None);
    assert!(!bootstrap.contains("require_client_certificate") && !bootstrap.contains("validation_context"));
    let files: Vec<_> = sds.iter().map(|(path, _)| path.display().to_string()).collect();
    assert_eq!(files, ["webhook_certificate", "log_lines"].map(|name| format!("/run/sds/{name}.yaml")));
}

#[test]
fn opens_the_admin_interface_only_where_it_is_asked_for() {
    let line = |admin| rendered(CONFIG, admin).bootstrap.lines().find(|line| line.trim().starts_with("address: {\"")).map(str::to_owned);
    assert_eq!(line(None), None);
    assert_eq!(line(Some("127.0.0.1:9901")).unwrap(), r#"  address: {"socket_address":{"address":"127.0.0.1","port_value":9901}}"#);
    assert_eq!(line(Some("run/envoy.sock")).unwrap(), r#"  address: {"pipe":{"mode":384,"path":"/etc/stepward/run/envoy.sock"}}"#);
}

#[test]
fn e3_statistics_can_be_read_unless_they_are_off_and_the_admin_interface_is_envoys_alone() {
    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    let print = |text: &str, admin: Option<&str>| {
        std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
        let args = EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: Some("out/envoy.yaml".into()),
            sds_dir: None,
            admin: admin.map(str::to_owned),
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        run(&args, &env, &mut Vec::new(), &mut Vec::new()).map_err(|error| error.to_string())?;
        Ok::<_, String>(std::fs::read_to_string(folder.path().join("out/envoy.yaml")).unwrap())
    };
    let with = |address: &str| CONFIG.replace("[envoy]", &format!("[envoy]\nstats_address = \"{address}\""));
    let socket = folder.path().join("out/envoy-admin.sock");
    let there = |bootstrap: &str, lines: &[&str]| {
        for line in lines {
            assert_eq!(bootstrap.matches(line).count(), 1, "{line}");
        }
    };
    let admin = format!(r#"  address: {{"pipe":{{"mode":384,"path":"{}"}}}}"#, socket.display());
    let endpoint = format!(r#"endpoint: {{ address: {{"pipe":{{"path":"{}"}}}} }}"#, socket.display());
    there(&print(CONFIG, None).unwrap(), &[&admin, &endpoint, r#"address: "127.0.0.1", port_value: 9465 "#]);
    there(&print(&with("[::1]:9000"), None).unwrap(), &[r#"address: "::1", port_value: 9000 "#]);
    // The admin interface that was asked for is the one that is called.
    for (admin, endpoint) in [("127.0.0.1:9901", "127.0.0.1"), ("[::1]:9901", "::1")] {
        let endpoint = format!(r#"endpoint: {{ address: {{"socket_address":{{"address":"{endpoint}","port_value":9901}}}} }}"#);
        there(&print(CONFIG, Some(admin)).unwrap(), &[&endpoint]);
    }
    // One path alone leads to the admin interface, with no query and no body.
    let bootstrap = print(CONFIG, None).unwrap();
    there(&bootstrap, &["cluster: envoy_admin,", "cluster_name: envoy_admin", "- name: envoy_admin\n"]);
    let (_, route) = bootstrap.split_once("path: /stats/prometheus").unwrap();
    let (matched, _) = route.split_once("route:").unwrap();
    for line in [
        r#"":path", string_match: { exact: /stats/prometheus }"#,
        r#"":method", string_match: { exact: GET }"#,
        "content-length, present_match: false",
    ] {
        assert!(matched.contains(line), "{line}");
    }
    // No route sees whether a body comes in chunks.
    there(&bootstrap, &["max_request_bytes: 1\n"]);
    let off = print(&with("off"), None).unwrap();
    assert!(!off.contains("envoy_admin") && !off.contains("name: stats") && !off.lines().any(|line| line == "admin:"));
    assert!(print(&with("off"), Some("./a.sock")).unwrap().lines().any(|line| line == "admin:"));
    for (address, said) in [
        ("0.0.0.0:9465", "can be reached from other machines"),
        ("192.0.2.1:9465", "can be reached from other machines"),
        ("localhost:9465", "is not an address and port"),
        ("127.0.0.1:9443", "would listen on the same port"),
        ("127.0.0.1:9464", "would listen on the same port"),
        ("127.0.0.1:0", "stats_address in [envoy] has port 0"),
    ] {
        let error = print(&with(address), None).unwrap_err();
        assert!(error.contains(said), "{address}: {error}");
    }
    let long = format!("./{}/envoy.sock", "x".repeat(120));
    assert!(print(CONFIG, Some(&long)).unwrap_err().contains("name a shorter one by --admin"));
}

#[test]
fn leaves_no_placeholder_of_a_template() {
    let Rendered { bootstrap, .. } = rendered(&CONFIG.replace("${socket}", "ca"), Some("127.0.0.1:9901"));
    assert!(!bootstrap.contains("${"), "{bootstrap}");
}

#[test]
fn limits_follow_the_largest_webhook() {
    let Rendered { bootstrap, .. } = rendered(CONFIG, None);
    for line in
        ["per_connection_buffer_limit_bytes: 131072", "initial_stream_window_size: 131072", "initial_connection_window_size: 2097152"]
    {
        assert!(bootstrap.contains(line), "{line}");
    }
    assert!(bootstrap.contains(r#"value: "{\"body_limit\":131072,\"cluster\":\"stepward\",\"deadline_ms\":3000}""#));
}

#[test]
fn takes_another_list_of_capabilities() {
    let config = Config::parse(CONFIG, Path::new("stepward.toml"), &env()).unwrap().config;
    for dropped in CAPABILITIES.lines().filter(|line| line.ends_with(": {}")) {
        let list: String = CAPABILITIES.lines().filter(|line| *line != dropped).map(|line| format!("{line}\n")).collect();
        let options = Options { capabilities: list, ..Options::new("/run/sds") };
        let bootstrap = render(&config, &options).unwrap().bootstrap;
        assert!(!bootstrap.lines().any(|line| line.trim() == dropped), "{dropped}");
    }
}

#[test]
fn writes_the_files_of_secrets_and_the_bootstrap() {
    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    std::fs::write(folder.path().join("stepward.toml"), CONFIG).unwrap();
    let args = |output: Option<&str>, sds: Option<&str>| EnvoyConfigArgs {
        config: Some("stepward.toml".into()),
        output: output.map(PathBuf::from),
        sds_dir: sds.map(PathBuf::from),
        admin: None,
        only_callers: false,
        any_certificate: false,
        heap: HEAP,
    };
    for (output, sds, expected) in
        [(None, None, "run/sds"), (Some("out/../envoy.yaml"), None, "out/../sds"), (None, Some("elsewhere"), "elsewhere")]
    {
        std::fs::create_dir_all(folder.path().join("out")).unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        run(&args(output, sds), &env, &mut stdout, &mut stderr).unwrap();
        let bootstrap = match output {
            Some(output) => std::fs::read_to_string(folder.path().join(output)).unwrap(),
            None => String::from_utf8(stdout).unwrap(),
        };
        let certificate = folder.path().join(expected).join("webhook_certificate.yaml");
        assert!(bootstrap.contains(&format!("path: \"{}\"", certificate.display())), "{expected}");
        assert!(certificate.is_file() && certificate.with_file_name("webhook_client_ca.yaml").is_file());
        let told = String::from_utf8(stderr).unwrap();
        let (missing, others): (Vec<_>, Vec<_>) = told.lines().partition(|line| line.contains(" is not there yet, "));
        assert!(told.starts_with("warning: webhook `one` has no `callers`") && missing.len() == 3, "{told}");
        assert_eq!(others.len(), if expected == "run/sds" { 2 } else { 1 }, "where the files are is said where nobody named it: {told}");
    }
}

#[test]
fn g12_what_envoy_could_not_run_with_is_refused() {
    let with_push = format!("{CONFIG}{PUSH}");
    let address = "webhook_address = \"127.0.0.1:9443\"";
    let outward = |ip: &str, port: u16| with_push.replace(address, &format!("{address}\npublic_address = \"{ip}:{port}\""));
    let port = |text: &str, port: u16| text.replace("127.0.0.1:9443", &format!("127.0.0.1:{port}"));
    let long = format!("/run/{}.sock", "x".repeat(98));
    assert_eq!(long.len(), 108);
    for (text, admin, expected) in [
        (CONFIG.to_owned(), Some("localhost:9901"), "`--admin localhost:9901` is neither an address and port nor the path of a socket"),
        (CONFIG.to_owned(), Some("9901"), "`--admin 9901` is neither"),
        (CONFIG.to_owned(), Some(""), "`--admin ` is neither"),
        (CONFIG.to_owned(), Some("127.0.0.1"), "`--admin 127.0.0.1` is neither"),
        (CONFIG.to_owned(), Some("127.0.0.1:0"), "--admin has port 0"),
        (port(CONFIG, 0), None, "webhook_address in [envoy] has port 0"),
        (outward("0.0.0.0", 0), None, "public_address in [envoy] has port 0"),
        (
            CONFIG.to_owned(),
            Some("127.0.0.1:9443"),
            "webhook_address in [envoy] (127.0.0.1:9443) and --admin (127.0.0.1:9443) would listen on the same port",
        ),
        (CONFIG.to_owned(), Some("0.0.0.0:9901"), "`--admin 0.0.0.0:9901` can be reached from elsewhere"),
        (CONFIG.to_owned(), Some("[::]:9901"), "`--admin [::]:9901` can be reached from elsewhere"),
        (CONFIG.to_owned(), Some("192.0.2.1:9901"), "write 127.0.0.1:9901 or the path of a socket"),
        (CONFIG.to_owned(), Some("[2001:db8::1]:9901"), "can be reached from elsewhere"),
        (CONFIG.to_owned(), Some(&*long), "has 108 bytes, and 107 are possible"),
        (outward("127.0.0.1", 9443), None, "webhook_address in [envoy] (127.0.0.1:9443) and public_address in [envoy]"),
        (outward("[::ffff:127.0.0.1]", 9443), None, "public_address in [envoy] (127.0.0.1:9443) would listen on the same port"),
        (outward("0.0.0.0", 9443), None, "would listen on the same port"),
        (outward("0.0.0.0", 9901), Some("127.0.0.1:9901"), "public_address in [envoy] (0.0.0.0:9901) and --admin"),
        (port(CONFIG, 9464), None, "and admin in [listen] (127.0.0.1:9464) would listen on the same port"),
    ] {
        let error = try_rendered(&text, admin).unwrap_err().to_string();
        assert!(error.contains(expected), "{admin:?}: {error}");
    }
    for (text, admin) in [
        (outward("127.0.0.2", 9443), Some("127.0.0.3:9443")),
        // Without events nothing listens at the public address.
        (CONFIG.replace(address, &format!("{address}\npublic_address = \"127.0.0.1:9443\"")), None),
        (CONFIG.to_owned(), Some("./localhost:9901")),
        (CONFIG.to_owned(), Some("[::1]:9901")),
        (CONFIG.to_owned(), Some("[::ffff:127.0.0.1]:9901")),
        (CONFIG.to_owned(), long.get(..107)),
    ] {
        try_rendered(&text, admin).unwrap();
    }
}

#[test]
fn e12_nothing_is_written_over_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["tls", "ca", "dist", "sds"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let config =
        CONFIG.replace("ser\\\"ver: {}", "server").replace("${socket}", "ca").replace("{ env = \"ONE\" }", "{ file = \"tls/secret\" }");
    let inputs =
        ["stepward.toml", "tls/server.crt", "tls/server.key", "ca/ca.crt", "dist/stepward_filter.wasm", "devices.json", "tls/secret"];
    for name in inputs {
        std::fs::write(at(name), if name == "stepward.toml" { &*config } else { "kept" }).unwrap();
    }
    std::fs::hard_link(at("tls/server.key"), at("linked")).unwrap();
    std::os::unix::fs::symlink(at("tls"), at("elsewhere")).unwrap();
    let run = |output: &str, sds: Option<&str>| {
        let args = EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: Some(output.into()),
            sds_dir: sds.map(PathBuf::from),
            admin: None,
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        run(&args, &Environment::new(folder.path()), &mut Vec::new(), &mut Vec::new()).map_err(|error| error.to_string())
    };
    let others = ["linked", "elsewhere/server.crt", "sds/../devices.json", "run/filter.sock", "state/stepward.db"];
    for output in inputs.into_iter().chain(others) {
        let said = run(output, None).unwrap_err();
        assert!(said.contains("the bootstrap would be written over"), "{output}: {said}");
    }
    let said = run("sds/log_lines.yaml", Some("sds")).unwrap_err();
    assert!(said.contains("one of the SDS files that it names"), "{said}");
    assert_eq!(std::fs::read_dir(at("sds")).unwrap().count(), 0, "nothing is written where something is refused");
    for name in inputs.iter().filter(|name| **name != "stepward.toml") {
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "kept", "{name}");
    }
    std::fs::remove_file(at("tls/server.key")).unwrap();
    for form in ["json", "table"] {
        assert!(run(form, None).unwrap_err().contains("names a file here") && !at(form).exists());
        run(&format!("./{form}"), None).unwrap();
        assert!(at(form).is_file());
    }
    std::fs::write(at("stepward.toml"), config.replace("path = \"devices.json\"", "path = \"sds/log_lines.yaml\"\nformat = \"json\""))
        .unwrap();
    let said = run("envoy.yaml", Some("sds")).unwrap_err();
    assert!(said.contains("an SDS file would be written over"), "{said}");
}

#[test]
fn g12_a_path_that_is_not_unicode_is_refused_and_nothing_is_written() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let odd = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
    let config = || Config::parse(CONFIG, Path::new("stepward.toml"), &env()).unwrap().config;
    type Change = fn(&mut Config, PathBuf);
    let changes: [(&str, Change); 5] = [
        ("wasm", |config, path| config.envoy.wasm = path),
        ("certificate", |config, path| config.envoy.certificate = path),
        ("private_key", |config, path| config.envoy.private_key = path),
        ("client_ca", |config, path| config.envoy.client_ca = Some(path)),
        ("sockets", |config, path| config.listen.sockets = path),
    ];
    for (name, change) in changes {
        let mut config = config();
        change(&mut config, odd(b"/odd/\xff/x"));
        let error = render(&config, &Options::new("/run/sds")).unwrap_err();
        assert!(matches!(&error, Unusable::NotUnicode(what, _) if what.starts_with(name)), "{error}");
    }
    let admin = Some(Admin::Socket(odd(b"/run/\xff")));
    assert!(matches!(render(&config(), &Options { admin, ..Options::new("/run/sds") }), Err(Unusable::NotUnicode("--admin", _))));

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("stepward.toml"), CONFIG).unwrap();
    let sds = folder.path().join(odd(b"\xffsds"));
    let args = EnvoyConfigArgs {
        config: Some("stepward.toml".into()),
        output: Some("envoy.yaml".into()),
        sds_dir: Some(sds.clone()),
        admin: None,
        only_callers: false,
        any_certificate: false,
        heap: HEAP,
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let error = run(&args, &Environment::new(folder.path()), &mut stdout, &mut stderr).unwrap_err().to_string();
    assert!(error.contains("is not UTF-8"), "{error}");
    assert!(stdout.is_empty() && !sds.exists() && !folder.path().join("envoy.yaml").exists());
}

/// Returns what a template says of its listener ahead of the access log: every key, and the line after it.
fn settings(template: &str) -> BTreeMap<&str, Vec<&str>> {
    let lines = template.lines().map(|line| line.split('#').next().unwrap_or_default().trim().trim_start_matches("- "));
    let lines = lines.skip_while(|line| !line.starts_with("address: { socket")).take_while(|line| *line != "access_log:");
    let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, value) in lines.filter_map(|line| line.split_once(':')) {
        settings.entry(key).or_default().push(value.trim());
    }
    settings
}

#[test]
fn f1_what_one_listener_sets_all_of_them_set() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut listeners: Vec<_> = files
        .map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(file).unwrap()))
        .filter(|(_, text)| text.contains("DownstreamTlsContext"))
        .collect();
    listeners.sort();
    assert!(listeners.iter().map(|(name, _)| &**name).eq(["bootstrap.yaml", "guard.yaml", "outward.yaml"]));
    assert!(listeners.iter().all(|(_, text)| text.matches("filter_chains:").count() == 1));
    // Keys that only some listeners have, each for a reason of its own.
    let own = [
        // Callers of webhooks show a certificate, and a guard's devices likewise; events come from strangers.
        "require_client_certificate",
        "validation_context",
        "trusted_ca",
        "${client_ca}",
        "${mtls}",
        // Place of the certificate.
        "tls_certificate_sds_secret_configs",
        "sds_config",
        "resource_api_version",
        "path_config_source",
        "tls_certificates",
        "certificate_chain",
        "private_key",
        // Strangers leave webhooks their connections; a guard has one listener.
        "ignore_global_conn_limit",
        // Events come by HTTP/1.1 alone, and the guard takes both versions by itself.
        "codec_type",
        "http2_protocol_options",
        "max_concurrent_streams",
        "initial_stream_window_size",
        "initial_connection_window_size",
        // A guarded service answers as long as it likes.
        "max_stream_duration",
        // Form of what step-ca sees.
        "preserve_external_request_id",
        "skip_xff_append",
        "server_header_transformation",
        "local_reply_config",
        "mappers",
        "filter",
        "status_code_filter",
        "comparison",
        "status_code",
        "body",
        "body_format_override",
        "text_format_source",
        "content_type",
    ];
    let all: BTreeSet<_> = listeners.iter().flat_map(|(_, text)| settings(text).into_keys()).filter(|key| !own.contains(key)).collect();
    assert!(all.contains("disable_stateless_session_resumption") && all.contains("request_headers_timeout"), "{all:?}");
    for (name, text) in &listeners {
        let there = settings(text);
        for key in &all {
            assert!(there.contains_key(key), "{name} has no {key}");
        }
        for (key, value) in [
            ("disable_stateless_session_resumption", "true"),
            ("disable_stateful_session_resumption", "true"),
            ("tls_minimum_protocol_version", "TLSv1_2"),
            ("tls_maximum_protocol_version", "TLSv1_3"),
            ("path_with_escaped_slashes_action", "REJECT_REQUEST"),
            ("headers_with_underscores_action", "REJECT_REQUEST"),
            ("use_remote_address", "true"),
        ] {
            assert_eq!(there[key], [value], "{name}: {key}");
        }
        let ciphers: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("- ECDHE-")).collect();
        assert_eq!(ciphers.len(), 6, "{name}");
        assert!(ciphers.iter().all(|cipher| BOOTSTRAP.contains(cipher)), "{name}");
    }
}

#[test]
fn f1_a_guard_goes_milder_means_first_as_the_bootstrap_does() {
    let guard = include_str!("../../../../envoy/guard.yaml");
    let actions = |text: &str| -> BTreeSet<String> {
        let names = text.lines().map(|line| line.trim().trim_start_matches("- name: ").to_owned());
        names.filter(|name| name.starts_with("envoy.overload_actions.") || name.starts_with("envoy.load_shed_points.")).collect()
    };
    assert!(actions(BOOTSTRAP).len() > 8);
    assert_eq!(actions(guard), actions(BOOTSTRAP));
    assert!(guard.contains("envoy.resource_limits.listener.guard.connection_limit: 4096"));
}

#[test]
fn f5_only_callers_are_let_finish_their_handshake_where_that_is_asked_for() {
    let render = |text: &str| {
        let config = Config::parse(text, Path::new("stepward.toml"), &env()).unwrap().config;
        render(&config, &Options { only_callers: true, ..Options::new("/run/sds") })
    };
    let named = |callers: &str| CONFIG.replace("secrets = [{ env", &format!("callers = [{callers}]\nsecrets = [{{ env"));
    let sds = render(&named(r#""uri:spiffe://a/\\\"b", "dns:CA.example.org", "ip:192.0.2.1", "email:a@example.org""#)).unwrap().sds;
    let (_, file) = sds.iter().find(|(path, _)| path.ends_with("webhook_client_ca.yaml")).unwrap();
    let (_, names) = file.split_once("    match_typed_subject_alt_names:\n").unwrap();
    assert_eq!(
        names.lines().map(str::trim).collect::<Vec<_>>(),
        [
            r#"- { san_type: DNS, matcher: { safe_regex: { regex: "(?i)ca\\.example\\.org" } } }"#,
            r#"- { san_type: EMAIL, matcher: { exact: "a@example.org" } }"#,
            r#"- { san_type: IP_ADDRESS, matcher: { exact: "192.0.2.1" } }"#,
            r#"- { san_type: URI, matcher: { exact: "spiffe://a/\\\"b" } }"#,
        ]
    );
    // By these callers Envoy could not tell whom to let in.
    let pinned = named(&format!(r#""dns:ca.example.org", "sha256:{}""#, "0".repeat(64)));
    for text in [CONFIG, &pinned] {
        assert_eq!(render(text).unwrap_err(), Unusable::NoNames("one".to_owned()));
    }
    assert!(!rendered(&named(r#""dns:ca.example.org""#), None).sds.iter().any(|(_, text)| text.contains("match_typed")));
}

#[test]
fn only_callers_finish_their_handshake_wherever_every_webhook_names_them_and_nobody_says_otherwise() {
    let named = CONFIG.replace("secrets = [{ env", "callers = [\"dns:ca.example.org\"]\nsecrets = [{ env");
    let pinned = named.replacen("dns:ca.example.org", &format!("sha256:{}", "0".repeat(64)), 1);
    let anonymous = CONFIG.replace("client_ca = \"ca/${socket}.crt\"\n", "");
    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    let run = |text: &str, (only_callers, any_certificate): (bool, bool)| {
        std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
        let args = EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: Some("envoy.yaml".into()),
            sds_dir: None,
            admin: None,
            only_callers,
            any_certificate,
            heap: HEAP,
        };
        let mut stderr = Vec::new();
        run(&args, &env, &mut Vec::new(), &mut stderr).map_err(|error| error.to_string())?;
        let ends = std::fs::read_to_string(folder.path().join("sds/webhook_client_ca.yaml"));
        let warned = String::from_utf8(stderr).unwrap().contains("can hold connections that step-ca needs");
        Ok::<_, String>((ends.is_ok_and(|text| text.contains("match_typed_subject_alt_names")), warned))
    };
    let (neither, only, any) = ((false, false), (true, false), (false, true));
    for (what, text, flags, ends, warned) in [
        ("anonymous", &anonymous, neither, false, false),
        ("named", &named, neither, true, false),
        ("named, asked for", &named, only, true, false),
        ("named, not wanted", &named, any, false, false),
        ("not named", &CONFIG.to_owned(), neither, false, true),
        ("not named, not wanted", &CONFIG.to_owned(), any, false, true),
        ("one pinned", &pinned, neither, false, true),
    ] {
        assert_eq!(run(text, flags), Ok((ends, warned)), "{what}");
    }
    for text in [CONFIG, &pinned] {
        assert!(run(text, only).unwrap_err().contains("Envoy can be told names only"));
    }
}

#[test]
fn f6_what_strangers_can_write_into_the_access_log_has_a_bound_at_each_listener() {
    let Rendered { bootstrap, sds } = rendered(&format!("{CONFIG}{PUSH}"), None);
    let (path, text) = sds.iter().find(|(path, _)| path.ends_with("log_lines.yaml")).unwrap();
    assert!(text.contains("max_tokens: 100\n    tokens_per_fill: 2\n"), "{text}");
    for line in ["resource_name: refused".to_owned(), format!("path_config_source: {{ path: \"{}\" }}", path.display())] {
        assert_eq!(bootstrap.matches(&line).count(), 3, "{line}");
    }
    // What is refused after the caller was let in is unbounded only where callers are known by name.
    assert!(!bootstrap.contains("refuse:no_keys"));
    let named = CONFIG.replace("secrets = [{ env", "callers = [\"dns:ca.example.org\"]\nsecrets = [{ env");
    assert!(rendered(&named, None).bootstrap.contains("refuse:no_keys"));
    // No access log without a filter, and no text in it that its sender can make as long as he likes.
    let logs: Vec<_> = bootstrap.split("- name: envoy.access_loggers.stdout").skip(1).collect();
    assert_eq!(logs.len(), 3);
    assert!(logs.iter().all(|log| log.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')) == Some("filter:")));
    for unbounded in ["%DOWNSTREAM_PEER_SUBJECT%", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "%REQ(X-SMALLSTEP-WEBHOOK-ID)", "%PATH(NQ)%"] {
        assert!(!bootstrap.contains(unbounded), "{unbounded}");
    }
    // A guard has the same limit, by the same file, for everybody who is not let in.
    let guard = include_str!("../../../../envoy/guard.yaml");
    let (_, log) = guard.split_once("- name: envoy.access_loggers.stdout").unwrap();
    for line in ["exact: allow", "match_if_key_not_found: false", "resource_name: refused", "path: envoy/log_lines.yaml"] {
        assert_eq!(log.matches(line).count(), 1, "{line}");
    }
    assert!(LOG_LINES.contains("name: refused"));
}

#[test]
fn b1_each_listener_has_a_limit_of_its_own_and_what_is_global_leaves_room_for_both() {
    let limits = |bootstrap: &str| -> Vec<u64> {
        let limits = bootstrap.lines().filter(|line| line.contains("connection_limit: ") || line.contains("max_active_downstream"));
        limits.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(limits(&rendered(CONFIG, None).bootstrap), [4096, 4096]);
    let both = rendered(&format!("{CONFIG}{PUSH}"), None).bootstrap;
    assert_eq!(limits(&both), [4352, 4096, 256]);
    assert_eq!(limits(&rendered(CONFIG, Some("./admin.sock")).bootstrap), [4112, 4096, 16]);
    // What strangers can hold by events alone stays far below where requests are refused.
    assert!(u64::from(OUTWARD_CONNECTIONS) * (1 << 20) * 3 < mebibytes(HEAP));
}

#[test]
fn b2_the_heap_fits_the_unit_and_the_compose_file() {
    let unit = include_str!("../../../../deploy/systemd/stepward-envoy.service");
    let compose = include_str!("../../../../deploy/docker/compose.yaml");
    assert!(unit.lines().any(|line| line == "MemoryMax=2G") && compose.lines().any(|line| line.trim() == "mem_limit: 2g"));
    let half = u64::from(HEAP) * 2;
    assert_eq!(half, 2 << 10);
    assert!(rendered(CONFIG, None).bootstrap.contains("max_heap_size_bytes: 1073741824"));
}

/// Returns a configuration whose Envoy has sidecars over TCP.
fn several(more: &str) -> String {
    let lines = "sidecars = [\"a.example.org:9446\", \"b.example.org:9447\"]\nsidecar_ca = \"tls/sidecars.crt\"\nclient_certificate = \"tls/envoy.crt\"\nclient_private_key = \"tls/envoy.key\"\n";
    CONFIG.replace("[[webhook]]\nid = \"one\"", &format!("{lines}{more}[[webhook]]\nid = \"one\""))
}

#[test]
fn sidecars_over_tcp_have_a_cluster_that_believes_each_by_its_name_alone() {
    let Rendered { bootstrap, sds } = rendered(&several(""), None);
    assert!(!bootstrap.contains("filter.sock") && !bootstrap.contains("${sidecars}") && !bootstrap.contains("${sds"), "{bootstrap}");
    let (_, cluster) = bootstrap.split_once("  # The sidecars, over TCP").unwrap();
    let (cluster, _) = cluster.split_once("overload_manager:").unwrap();
    let files = sds.iter().filter(|(path, _)| path.to_string_lossy().contains("sidecar"));
    let files: String = files.map(|(path, text)| format!("--- {}\n{text}", path.display())).collect();
    insta::assert_snapshot!("sidecars", format!("  # The sidecars, over TCP{cluster}{files}"));
}

#[test]
fn sidecars_have_ports_and_files_of_their_own_and_events_go_to_none_of_them() {
    let filter =
        "[filter]\naddress = \"127.0.0.1:9443\"\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\nnames = [\"dns:a\"]\n";
    let error = try_rendered(&several(filter), None).unwrap_err().to_string();
    assert!(error.contains("address in [filter] (127.0.0.1:9443) would listen on the same port"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let env = Environment::new(folder.path());
    let print = |text: &str, sds: &str| {
        std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
        let args = EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: Some("envoy.yaml".into()),
            sds_dir: Some(sds.into()),
            admin: None,
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        let mut errors = Vec::new();
        run(&args, &env, &mut Vec::new(), &mut errors).map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8(errors).unwrap())
    };
    let pushed = format!("{}{PUSH}", several(""));
    let of_events = |said: &str| said.contains("run/push.sock alone, and to none of `sidecars`");
    assert!(of_events(&print(&pushed, "sds").unwrap()));
    assert!(!of_events(&print(&several(""), "sds").unwrap()) && !of_events(&print(&format!("{CONFIG}{PUSH}"), "sds").unwrap()));
    for name in ["sidecar_client_certificate.yaml", "sidecar_ca.yaml"] {
        assert!(folder.path().join("sds").join(name).is_file(), "{name}");
    }
    // What Envoy shows to the sidecars is examined as what it shows to step-ca is, and not written over.
    let over = several("").replace("tls/envoy.crt", "tls/sidecar_ca.yaml");
    assert!(print(&over, "tls").unwrap_err().contains("an SDS file would be written over"));
    std::fs::create_dir_all(folder.path().join("tls")).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["envoy.example.org".to_owned()]).unwrap();
    std::fs::write(folder.path().join("tls/envoy.crt"), certificate.cert.pem()).unwrap();
    std::fs::write(folder.path().join("tls/envoy.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(print(&several(""), "sds").unwrap_err().contains("tls/envoy.key: is not the key of "));
    std::fs::write(folder.path().join("tls/envoy.key"), certificate.signing_key.serialize_pem()).unwrap();
    assert!(print(&several(""), "sds").is_ok());
}
