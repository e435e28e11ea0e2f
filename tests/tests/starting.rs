//! From `stepward init --step-ca` to a first certificate, by what it prints, with a real step-ca.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::process::Process;
use e2e::step::StepCa;
use e2e::tools::{envoy, filter, free_port, step_folder, stepward};
use e2e::wait::until;
use e2e::world::{add_jwk, template};

const LAPTOP: &str = "laptop.example.org";

/// A command in a folder, with the programs in `PATH`, as the administrator of the CA.
fn command(ca: &StepCa, folder: &Path, program: &str) -> Command {
    let built = stepward();
    let programs = [step_folder(), built.parent().unwrap(), Path::new("/usr/bin"), Path::new("/bin")];
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::join_paths(programs).unwrap()).env("HOME", folder).env("STEPPATH", ca.path("administrator"));
    for (name, value) in [("SUBJECT", "step"), ("PROVISIONER", "admin")] {
        command.env(format!("STEP_ADMIN_{name}"), value);
    }
    let password = ca.path("password");
    command.env("STEP_ADMIN_PASSWORD_FILE", &password);
    command.env("STEP_PROVISIONER", "admin").env("STEP_PROVISIONER_PASSWORD_FILE", &password);
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Whether it ended well, and what was printed.
fn output(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn e14_a_folder_for_a_real_ca_leads_to_a_first_certificate() {
    let ca = StepCa::start().await;
    add_jwk(&ca, "laptops", Some(("--x509-template", &template("posture"))));
    let folder = tempfile::tempdir().unwrap();
    let fingerprint = ca.step(&["certificate", "fingerprint", "step/certs/root_ca.crt"]).unwrap().trim().to_owned();
    let address = format!("https://localhost:{}", ca.address().port());
    let webhook = format!("https://localhost:{}/webhook/device", free_port());
    let wasm = filter().display().to_string();
    let init = |more: &[&str]| {
        let arguments = ["init", "made", "--step-ca", &address, "--provisioner", "laptops", "--url", &webhook, "--wasm", &wasm];
        output(command(&ca, folder.path(), "stepward").args(arguments).args(more))
    };

    // Nothing is believed without the root, nor with that of another CA, and nothing is left behind then.
    let other = e2e::pki::Authority::new("Another Root");
    std::fs::write(folder.path().join("other.crt"), other.pem()).unwrap();
    for (more, said) in [
        (&[][..], "what is the CA's root?"),
        (&["--fingerprint", &"0".repeat(64)], "has no root with the fingerprint 000"),
        (&["--root", "other.crt"], "does not come from that root"),
        (&["--root", "other.crt", "--fingerprint", &fingerprint], "one of them is of another CA"),
        (&["--fingerprint", "12"], "64 hexadecimal digits"),
    ] {
        let (good, text) = init(more);
        assert!(!good && text.contains(said), "{said}: {text}");
        assert!(!folder.path().join("made").exists());
    }

    let (good, text) = init(&["--fingerprint", &fingerprint]);
    assert!(good && text.contains("The CA calls as dns:ca.example.org"), "{text}");
    let made = folder.path().join("made");
    assert_eq!(std::fs::read_to_string(made.join("tls/root.crt")).unwrap().trim(), std::fs::read_to_string(ca.root()).unwrap().trim());
    let (good, again) = init(&["--fingerprint", &fingerprint]);
    assert!(!good && again.contains("is there already; nothing was written"), "{again}");

    // What is printed for the administrator, line by line, up to what runs for long.
    let (_, steps) = text.split_once("administrator of the CA:\n").unwrap();
    let (steps, _) = steps.split_once("\n\n").unwrap();
    let (good, text) = output(command(&ca, folder.path(), "bash").args(["-euxc", steps]));
    assert!(good && text.contains("OK"), "{text}");

    std::fs::write(made.join("devices.csv"), format!("Identifier,team\n{LAPTOP},Blue\n")).unwrap();
    let mut serve = command(&ca, &made, "stepward");
    let [metrics, stats] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let variables = [("STEPWARD__LISTEN__ADMIN", &metrics), ("STEPWARD__ENVOY__STATS_ADDRESS", &stats)];
    serve.args(["serve", "--config", "stepward.toml"]).envs(variables);
    let _sidecar = Process::start("sidecar", &made, serve);
    let bootstrap = ["envoy-config", "--config", "stepward.toml", "--output", "envoy.yaml", "--only-callers"];
    let (good, text) = output(command(&ca, &made, "stepward").args(bootstrap).envs(variables));
    assert!(good, "{text}");
    let mut proxy = Command::new(envoy());
    proxy.args(["--config-path", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1"]).current_dir(&made);
    let _envoy = Process::start("envoy", &made, proxy);

    let issue = |name: &str| {
        let provisioner = ["--provisioner", "laptops", "--provisioner-password-file", "password", "--force"];
        ca.step(&[&["ca", "certificate", name, "laptop.crt", "laptop.key"], &provisioner[..]].concat())
    };
    until("a certificate is issued", Duration::from_secs(30), async || issue(LAPTOP).ok()).await;
    assert!(ca.step(&["certificate", "inspect", "laptop.crt"]).unwrap().contains(&format!("OU=Blue,CN={LAPTOP}")));
    let refused = issue("stranger.example.org").unwrap_err();
    assert!(refused.contains("device_not_found"), "{refused}");
}
