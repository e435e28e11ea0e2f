//! Asks a running service about a device: `cargo run -p sidecar --example ask run/query.sock staff-mac C02XL0GYJGH5`.
//!
//! docs/queries.md shows this program.
#![expect(clippy::print_stdout, reason = "it prints the answer")]

use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{CheckRequest, Decision};
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::Endpoint;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |name: &'static str| arguments.next().with_context(|| format!("{name} is missing"));
    let (socket, policy, identifier) = (argument("the socket")?, argument("the policy")?, argument("the device")?);
    // One channel serves the whole program, and connects again by itself.
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://stepward").connect_with_connector(connector).await?;
    let mut client = PostureServiceClient::new(channel);
    let mut request = Request::new(CheckRequest { policy, identifier, ..CheckRequest::default() });
    request.set_timeout(Duration::from_secs(2));
    let answer = client.check(request).await?.into_inner();
    match answer.decision() {
        Decision::Allow => println!("allowed: {}", answer.data),
        Decision::Deny => println!("denied: {} ({}) {}", answer.message, answer.code, answer.remediation_url),
        // Whatever this program does not know is no allow either.
        Decision::Unavailable | Decision::Unspecified => println!("nobody can say at present: {}", answer.message),
    }
    Ok(())
}
