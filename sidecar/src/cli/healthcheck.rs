//! `stepward healthcheck`: for containers that have no shell and no curl.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};
use settings::Environment;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::exit::Exit;
use super::output::{Format, OutputArgs, err, out};
use super::service::listening;

/// What `healthcheck` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward healthcheck --config /etc/stepward/stepward.toml
  stepward healthcheck --address 127.0.0.1:9464 --output json

Exit codes: 0 ready, 1 failed, 2 usage, 5 not ready or no answer.")]
pub struct HealthcheckArgs {
    /// Configuration file, for the address
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port of the service's metrics and health, instead of the configuration's
    #[arg(long)]
    address: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks the service's page `/readyz`, and prints it.
///
/// # Errors
/// Where the configuration cannot be read.
pub async fn run(args: HealthcheckArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let address = match args.address {
        Some(address) => address,
        None => listening(args.config.as_deref(), environment)?.admin.to_string(),
    };
    match tokio::time::timeout(Duration::from_secs(3), ask(&address, args.output)).await.context("no answer in 3 s").flatten() {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => Ok(Exit::Unavailable),
        Err(error) => {
            writeln!(err(), "error: {error:#}; is `stepward serve` running, and is that its `admin` address?")?;
            Ok(Exit::Unavailable)
        }
    }
}

async fn ask(address: &str, output: OutputArgs) -> anyhow::Result<bool> {
    let (ready, body) = page(address).await?;
    match output.output {
        Format::Table => out().write_all(body.as_bytes())?,
        Format::Json => writeln!(out(), "{}", to_json(ready, &body))?,
    }
    Ok(ready)
}

/// Returns the page as JSON: its first word, and its further lines by their first words.
fn to_json(ready: bool, body: &str) -> Value {
    let mut lines = body.lines();
    let state = lines.next().unwrap_or_default();
    let mut told = Map::new();
    for (name, rest) in lines.map(|line| line.split_once(' ').unwrap_or((line, ""))) {
        let Value::Array(all) = told.entry(name).or_insert_with(|| Value::Array(Vec::new())) else { continue };
        all.push(rest.into());
    }
    json!({ "ready": ready, "state": state, "details": told })
}

/// Asks for `/readyz?verbose`; returns whether the service is ready, and the page.
pub(super) async fn page(address: &str) -> anyhow::Result<(bool, String)> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.write_all(b"GET /readyz?verbose HTTP/1.1\r\nhost: stepward\r\nconnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    stream.take(1 << 20).read_to_string(&mut reply).await?;
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let word = body.lines().next().filter(|word| ["starting", "ready", "draining"].contains(word));
    word.with_context(|| format!("what answers at {address} is not Stepward"))?;
    Ok((reply.starts_with("HTTP/1.1 200 "), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn e35_what_answers_in_its_place_is_said_to_be_something_else() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let said = ["HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", "HTTP/1.1 200 OK\r\n\r\nready\n"];
        let answering = tokio::spawn(async move {
            for reply in said {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(page(&address).await.unwrap_err().to_string(), format!("what answers at {address} is not Stepward"));
        assert_eq!(page(&address).await.unwrap(), (true, "ready\n".to_owned()));
        answering.await.unwrap();
    }

    #[test]
    fn e12_the_page_of_health_is_told_to_programs_as_well() {
        let page = "ready\nrevision 3\nprovider staff 2 devices\nprovider jamf 7 devices\nnot_applied staff: it shrank\n";
        let told = to_json(true, page);
        assert_eq!((&told["ready"], &told["state"]), (&json!(true), &json!("ready")));
        assert_eq!(told["details"]["provider"], json!(["staff 2 devices", "jamf 7 devices"]));
        assert_eq!(told["details"]["not_applied"], json!(["staff: it shrank"]));
    }
}
