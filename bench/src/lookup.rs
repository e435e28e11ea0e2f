//! `PostureService.Lookup` beside a method that does nothing, both called over a UNIX socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hyper_util::rt::TokioIo;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{LookupRequest, Outcome};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cpu::Usage;
use crate::signer::{DEVICES, device};

/// Calls under way at once.
const CALLERS: usize = 16;

/// CPU of a server for one call.
pub(crate) async fn per_call(server: u32, client: &PostureServiceClient<Channel>, calls: usize, found: bool) -> anyhow::Result<Duration> {
    let usage = Usage::start(&[server])?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = client.clone();
        callers.spawn(async move {
            for call in 0..calls / CALLERS {
                let request = LookupRequest { identifier: device((call * CALLERS + caller) % DEVICES), ..LookupRequest::default() };
                let answers = client.lookup(request).await?.into_inner().answers;
                let right =
                    if found { matches!(answers.as_slice(), [answer] if answer.outcome() == Outcome::Found) } else { answers.is_empty() };
                ensure!(right, "{answers:?}");
            }
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let [used] = usage.stop()?.try_into().ok().context("one process")?;
    Ok(used / u32::try_from(calls / CALLERS * CALLERS)?)
}

/// A client of a socket.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<PostureServiceClient<Channel>> {
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok(PostureServiceClient::new(channel))
}
