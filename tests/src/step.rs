//! A step-ca for one test, with remote management, and the `step` that talks to it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::pki::Credential;
use crate::process::{Process, run};
use crate::tools::{free_port, step_folder};
use crate::wait::STARTUP;
use crate::webhook::Registered;

/// Caller rule for a DNS name in the client certificate that step-ca shows to webhooks.
pub const CALLER: &str = "dns:ca.example.org";

/// A running step-ca.
#[derive(Debug)]
pub struct StepCa {
    // The process is declared before the folder, so that it is killed before its files go.
    _process: Process,
    folder: TempDir,
    port: u16,
}

impl StepCa {
    /// Makes a CA and starts it.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        fs::write(folder.path().join("password"), "password").unwrap();
        let address = format!("127.0.0.1:{port}");
        run(step(folder.path())
            .args(["ca", "init", "--deployment-type", "standalone", "--name", "Test", "--ssh", "--remote-management"])
            .args([
                "--dns",
                "ca.example.org",
                "--dns",
                "localhost",
                "--address",
                &address,
                "--with-ca-url",
                &format!("https://localhost:{port}"),
                "--provisioner",
                "admin",
                "--password-file",
                "password",
                "--provisioner-password-file",
                "password",
            ]));
        let mut command = Command::new(step_folder().join("step-ca"));
        command.env_clear().env("HOME", folder.path()).env("STEPPATH", folder.path().join("step")).current_dir(folder.path());
        command.args(["--password-file", "password", "step/config/ca.json"]);
        let mut process = Process::start("step-ca", folder.path(), command);
        process.printed("Serving HTTPS", STARTUP).await;
        Self { _process: process, folder, port }
    }

    /// The chain with which step-ca signs, root and intermediate, in PEM.
    pub fn bundle(&self) -> String {
        ["root_ca.crt", "intermediate_ca.crt"].map(|name| fs::read_to_string(self.path(&format!("step/certs/{name}"))).unwrap()).concat()
    }

    /// Path of the root certificate.
    pub fn root(&self) -> PathBuf {
        self.path("step/certs/root_ca.crt")
    }

    /// Path of a file in step-ca's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Address on which step-ca listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The ACME directory of a provisioner.
    pub fn directory(&self, provisioner: &str) -> String {
        format!("https://localhost:{}/acme/{provisioner}/directory", self.port)
    }

    /// Runs `step` in step-ca's folder, and returns its output.
    ///
    /// # Errors
    /// The output, if `step` fails.
    pub fn step(&self, arguments: &[&str]) -> Result<String, String> {
        let output = step(self.folder.path()).args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// Adds a provisioner; `template` is an option of `step` and the text of the file that it names.
    pub fn add_provisioner(&self, name: &str, arguments: &[&str], template: Option<(&str, &str)>) {
        let file = format!("{name}.tpl");
        let mut all = vec!["ca", "provisioner", "add", name];
        all.extend_from_slice(arguments);
        if let Some((option, text)) = template {
            fs::write(self.path(&file), text).unwrap();
            all.extend_from_slice(&[option, &file]);
        }
        all.extend_from_slice(ADMIN);
        self.step(&all).unwrap();
    }

    /// Adds a webhook to a provisioner, and returns the id and secret that `step` prints.
    pub fn add_webhook(&self, provisioner: &str, name: &str, webhook: SocketAddr, arguments: &[&str]) -> Registered {
        let url = format!("https://localhost:{}/webhook/{name}", webhook.port());
        let mut all = vec!["ca", "provisioner", "webhook", "add", provisioner, name, "--url", &url];
        all.extend_from_slice(arguments);
        all.extend_from_slice(ADMIN);
        let printed = self.step(&all).unwrap();
        let value = |name: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {printed}")).trim().to_owned()
        };
        Registered { id: value("Webhook ID:"), secret: value("Secret:") }
    }

    /// Issues a certificate by the first provisioner, for servers and clients.
    pub fn credential(&self, name: &str) -> Credential {
        let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
        self.step(&[
            "ca",
            "certificate",
            name,
            &certificate,
            &key,
            "--provisioner",
            "admin",
            "--provisioner-password-file",
            "password",
            "--force",
        ])
        .unwrap();
        Credential::read(&self.path(&certificate), &self.path(&key))
    }
}

const ADMIN: &[&str] = &["--admin-subject", "step", "--admin-provisioner", "admin", "--admin-password-file", "password"];

fn step(folder: &Path) -> Command {
    let mut command = Command::new(step_folder().join("step"));
    command.env_clear().env("HOME", folder).env("STEPPATH", folder.join("step")).current_dir(folder);
    command
}
