//! Asks a running service over its filter socket, as one worker of Envoy does, and prints the service's CPU per question:
//! `attach_load CONFIG PID QUESTIONS CERTIFICATE.pem DEVICE [OUTSTANDING]`.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use posture::caller::Peer;
use posture::verify::SigningKeys;
use proto::v1::filter_message::Message;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::sidecar_message::Message as FromSidecar;
use proto::v1::{FilterHello, FilterMessage, Question, Verdict};
use settings::Environment;
use sidecar::config::Config;
use time::format_description::well_known::Rfc3339;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().with_context(|| format!("{name} is missing"));
    let environment = Environment::current();
    let config = Config::load(Some(Path::new(&next("CONFIG")?)), &environment)?.config;
    let pid: u32 = next("PID")?.parse()?;
    let questions: u64 = next("QUESTIONS")?.parse()?;
    let (_, certificate) = Peer::from_pem(&std::fs::read(next("CERTIFICATE")?)?)?;
    let device = next("DEVICE")?;
    let outstanding: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;

    let webhook = config.webhooks.first().context("there is no webhook")?;
    let secrets = config.resolve_secrets(&environment)?;
    let keys = SigningKeys::new(&secrets.webhooks.first().context("there is no webhook")?.signing);
    let question = |sequence: u64| -> anyhow::Result<FilterMessage> {
        let timestamp = time::OffsetDateTime::from(SystemTime::now()).format(&Rfc3339)?;
        let padding = "x".repeat(900);
        let body = format!(
            r#"{{"timestamp":"{timestamp}","x509CertificateRequest":{{"version":0,"signature":"{padding}","subject":{{"commonName":"{device}"}},"dnsNames":null,"serial":{sequence}}},"attestationData":{{"permanentIdentifier":"{device}"}}}}"#
        );
        let signature = keys.sign(body.as_bytes()).context("there is no secret")?;
        Ok(FilterMessage {
            message: Some(Message::Question(Question {
                sequence,
                webhook_id: webhook.id.clone(),
                signature: signature.as_bytes().to_vec(),
                body: body.into(),
                peer_certificate: certificate.clone(),
                peer_address: "127.0.0.1:50000".to_owned(),
                request_id: format!("request-{sequence}"),
                ..Question::default()
            })),
        })
    };

    let channel = Endpoint::from_shared(format!("unix://{}", config.listen.socket("filter").display()))?.connect().await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(4096);
    sender.send(FilterMessage { message: Some(Message::Hello(FilterHello { vm: 1, ..FilterHello::default() })) }).await?;
    let mut answers = FilterServiceClient::new(channel).attach(ReceiverStream::new(receiver)).await?.into_inner();
    let (mut sent, mut answered) = (0, 0);
    let before = cpu(pid)?;
    let started = Instant::now();
    while sent < outstanding.min(questions) {
        sender.send(question(sent)?).await?;
        sent += 1;
    }
    while answered < questions {
        let Some(FromSidecar::Answer(answer)) = answers.message().await?.context("the stream ended")?.message else { continue };
        ensure!(answer.verdict() == Verdict::Allow, "{answer:?}");
        answered += 1;
        if sent < questions {
            sender.send(question(sent)?).await?;
            sent += 1;
        }
    }
    let elapsed = started.elapsed();
    let spent = cpu(pid)?.saturating_sub(before);
    let per = |duration: Duration| duration.as_secs_f64() * 1e6 / f64::from(u32::try_from(questions).unwrap_or(u32::MAX));
    println!(
        "{questions} questions, {outstanding} outstanding: {:.1} µs CPU of the service each, {:.1} µs elapsed each",
        per(spent),
        per(elapsed)
    );
    Ok(())
}

/// Returns the user and system time of a process so far, at the kernel's 100 ticks a second.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("read /proc")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("read /proc")?.parse::<u64>().context("read /proc");
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}
