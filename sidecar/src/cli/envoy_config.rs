//! `stepward envoy-config`: a complete bootstrap for Envoy, made of the templates in `envoy/`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use crate::config::{Config, Environment, Provider};

const BOOTSTRAP: &str = include_str!("../../../envoy/bootstrap.yaml");
const FILTER: &str = include_str!("../../../envoy/filter.yaml");
const CAPABILITIES: &str = include_str!("../../../envoy/capabilities.yaml");
const MTLS: &str = include_str!("../../../envoy/mtls.yaml");
const CLIENT_CA: &str = include_str!("../../../envoy/client_ca.yaml");
const OUTWARD: &str = include_str!("../../../envoy/outward.yaml");
const OUTWARD_ROUTE: &str = include_str!("../../../envoy/outward_route.yaml");
const OUTWARD_CLUSTER: &str = include_str!("../../../envoy/outward_cluster.yaml");
const ADMIN: &str = include_str!("../../../envoy/admin.yaml");
const SDS_CERTIFICATE: &str = include_str!("../../../envoy/sds_certificate.yaml");
const SDS_CLIENT_CA: &str = include_str!("../../../envoy/sds_client_ca.yaml");

/// Smallest window that HTTP/2 has by itself; a smaller one only slows (RFC 9113, 6.9.2).
const SMALLEST_WINDOW: u32 = 65_535;

/// Print a complete Envoy bootstrap for this configuration
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward envoy-config --config stepward.toml --output envoy.yaml
  envoy -c envoy.yaml --concurrency 2

The certificate, its key and the client authority reach Envoy by two small files, written into --sds-dir, so that Envoy
takes new ones without a restart: rename them into their folder.

Exit codes: 0 written, 1 mistakes in the configuration or a file that cannot be written, 2 usage.")]
pub struct EnvoyConfigArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Write the bootstrap into FILE instead of the standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Folder of the SDS files [default: `sds` beside --output, else `sds` in the folder of the sockets]
    #[arg(long, value_name = "DIR")]
    pub sds_dir: Option<PathBuf>,
    /// Open Envoy's admin interface: an address and port (never a public one), or the path of a socket [default: none]
    #[arg(long, value_name = "ADDRESS|PATH")]
    pub admin: Option<String>,
}

/// What there is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Envoy's `-c`.
    pub bootstrap: String,
    /// SDS files that it names, with their text.
    pub sds: Vec<(PathBuf, String)>,
}

/// Reads the configuration, writes the SDS files, and prints the bootstrap or writes it; warnings go to the standard error.
///
/// # Errors
/// The mistakes of the configuration, or a file that cannot be written.
pub fn run(
    args: &EnvoyConfigArgs,
    env: &Environment,
    stdout: &mut dyn std::io::Write,
    stderr: &mut dyn std::io::Write,
) -> anyhow::Result<()> {
    let loaded = Config::load(args.config.as_deref(), env)?;
    for warning in &loaded.warnings {
        writeln!(stderr, "warning: {warning}")?;
    }
    let sds = match (&args.sds_dir, &args.output) {
        (Some(folder), _) => env.directory.join(folder),
        (None, Some(output)) => env.directory.join(output).parent().map_or_else(|| env.directory.join("sds"), |folder| folder.join("sds")),
        (None, None) => loaded.config.listen.sockets.join("sds"),
    };
    let rendered = render(&loaded.config, &sds, args.admin.as_deref(), env);
    std::fs::create_dir_all(&sds).with_context(|| format!("make the folder {}", sds.display()))?;
    for (path, text) in &rendered.sds {
        replace(path, text)?;
    }
    match &args.output {
        Some(output) => replace(&env.directory.join(output), &rendered.bootstrap),
        None => stdout.write_all(rendered.bootstrap.as_bytes()).context("write the bootstrap"),
    }
}

/// Writes beside, then renames: Envoy watches for that, and never sees half a file.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Fills in the templates. `sds` is the folder of the SDS files, `admin` an address or the path of a socket.
pub fn render(config: &Config, sds: &Path, admin: Option<&str>, env: &Environment) -> Rendered {
    render_with(config, sds, admin, env, CAPABILITIES)
}

/// As [`render`], with another list of capabilities: for the test that leaves each of them out.
pub fn render_with(config: &Config, sds: &Path, admin: Option<&str>, env: &Environment, capabilities: &str) -> Rendered {
    let envoy = &config.envoy;
    let limit = config.webhooks.iter().map(|webhook| webhook.body_limit).max().unwrap_or(65_536);
    let deadline = config.webhooks.iter().map(|webhook| webhook.deadline).max().unwrap_or_default();
    let window = limit.max(SMALLEST_WINDOW);
    let plugin = json!({ "cluster": "stepward", "deadline_ms": u64::try_from(deadline.as_millis()).unwrap_or(3500), "body_limit": limit });
    let capabilities = capabilities.to_owned();
    let filter =
        fill(FILTER, &[("configuration", quote(&plugin.to_string())), ("wasm", quote_path(&envoy.wasm)), ("capabilities", capabilities)]);

    let certificate_file = sds.join("webhook_certificate.yaml");
    let mut files = vec![(
        certificate_file.clone(),
        fill(
            SDS_CERTIFICATE,
            &[
                ("certificate", quote_path(&envoy.certificate)),
                ("private_key", quote_path(&envoy.private_key)),
                ("folder", quote_path(folder(&envoy.certificate))),
            ],
        ),
    )];
    let (mut mtls, mut client_ca) = (String::new(), String::new());
    if let Some(ca) = &envoy.client_ca {
        let file = sds.join("webhook_client_ca.yaml");
        mtls = MTLS.to_owned();
        client_ca = fill(CLIENT_CA, &[("sds_client_ca", quote_path(&file))]);
        files.push((file, fill(SDS_CLIENT_CA, &[("client_ca", quote_path(ca)), ("folder", quote_path(folder(ca)))])));
    }
    let (outward, outward_cluster) = outward(config, &certificate_file);
    let bootstrap = fill(
        BOOTSTRAP,
        &[
            ("admin", admin.map(|admin| fill(ADMIN, &[("address", address(admin, env).to_string())])).unwrap_or_default()),
            ("address", quote(&envoy.webhook_address.ip().to_string())),
            ("port", envoy.webhook_address.port().to_string()),
            ("buffer", limit.to_string()),
            ("stream_window", window.to_string()),
            ("connection_window", window.saturating_mul(16).to_string()),
            // Longer than any deadline, and short enough that Envoy's own answer is out within 4 s.
            ("max_stream_duration", "3.9s".to_owned()),
            ("mtls", mtls),
            ("client_ca", client_ca),
            ("sds_certificate", quote_path(&certificate_file)),
            ("filter", filter),
            ("socket", quote_path(&config.listen.sockets.join("filter.sock"))),
            ("outward", outward),
            ("outward_cluster", outward_cluster),
        ],
    );
    Rendered { bootstrap, sds: files }
}

/// The listener for strangers and what stands behind it; nothing where no provider takes events.
fn outward(config: &Config, certificate: &Path) -> (String, String) {
    let pushed = config.providers.iter().filter(|(_, provider)| matches!(provider, Provider::Remote(remote) if remote.push.is_some()));
    let routes: String = pushed.map(|(name, _)| fill(OUTWARD_ROUTE, &[("path", quote(&format!("/push/{name}")))])).collect();
    if routes.is_empty() {
        return (String::new(), String::new());
    }
    let address = config.envoy.public_address;
    let listener = fill(
        OUTWARD,
        &[
            ("address", quote(&address.ip().to_string())),
            ("port", address.port().to_string()),
            ("sds_certificate", quote_path(certificate)),
            ("routes", routes),
        ],
    );
    (listener, fill(OUTWARD_CLUSTER, &[("socket", quote_path(&config.listen.sockets.join("push.sock")))]))
}

fn address(admin: &str, env: &Environment) -> Value {
    match admin.parse::<SocketAddr>() {
        Ok(address) => json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } }),
        Err(_) => json!({ "pipe": { "path": env.directory.join(admin).to_string_lossy(), "mode": 0o600 } }),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// As JSON, so that no character of a path means anything to YAML.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// Puts values in the place of `${name}`. A name that stands alone on its line takes a whole block, at the same depth;
/// an empty one takes the line away.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let indent = line.len() - line.trim_start().len();
        let alone = values.iter().find(|(name, _)| line.trim() == format!("${{{name}}}"));
        if let Some((_, block)) = alone {
            for line in block.lines() {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
            continue;
        }
        let mut rest = line;
        while let Some((before, (value, after))) = placeholder(rest, values) {
            text.push_str(before);
            text.push_str(value);
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
    }
    text
}

/// The first `${name}` that has a value: what stands before it, the value, what follows. Values are never looked into.
fn placeholder<'l, 'v>(line: &'l str, values: &'v [(&str, String)]) -> Option<(&'l str, (&'v str, &'l str))> {
    let (before, from) = line.split_once("${")?;
    let (name, after) = from.split_once('}')?;
    let (_, value) = values.iter().find(|(known, _)| *known == name)?;
    Some((before, (value, after)))
}

#[cfg(test)]
mod tests {
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

    fn rendered(text: &str, admin: Option<&str>) -> Rendered {
        let config = Config::parse(text, Path::new("stepward.toml"), &env()).unwrap().config;
        render(&config, Path::new("/run/sds"), admin, &env())
    }

    #[test]
    fn prints_a_bootstrap_with_client_certificates() {
        let Rendered { bootstrap, sds } = rendered(CONFIG, None);
        let files: String = sds.iter().map(|(path, text)| format!("--- {}\n{text}", path.display())).collect();
        insta::assert_snapshot!("mtls", format!("{bootstrap}{files}"));
    }

    #[test]
    fn asks_for_no_client_certificate_without_an_authority() {
        let Rendered { bootstrap, sds } = rendered(&CONFIG.replace("client_ca = \"ca/${socket}.crt\"\n", ""), None);
        assert!(!bootstrap.contains("require_client_certificate") && !bootstrap.contains("validation_context"));
        assert_eq!(sds.len(), 1);
    }

    #[test]
    fn opens_the_admin_interface_only_where_it_is_asked_for() {
        let line =
            |admin| rendered(CONFIG, admin).bootstrap.lines().find(|line| line.trim().starts_with("address: {\"")).map(str::to_owned);
        assert_eq!(line(None), None);
        assert_eq!(line(Some("127.0.0.1:9901")).unwrap(), r#"  address: {"socket_address":{"address":"127.0.0.1","port_value":9901}}"#);
        assert_eq!(line(Some("run/envoy.sock")).unwrap(), r#"  address: {"pipe":{"mode":384,"path":"/etc/stepward/run/envoy.sock"}}"#);
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
            let bootstrap = render_with(&config, Path::new("/run/sds"), None, &env(), &list).bootstrap;
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
            assert_eq!(stderr, b"");
        }
    }
}
