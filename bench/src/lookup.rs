//! `PostureService.Lookup` and `Check` beside methods that do nothing, all called over a UNIX socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hyper_util::rt::TokioIo;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{CheckRequest, Decision, LookupRequest, Outcome};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cpu::Usage;
use crate::place::{MANAGEMENT, POLICY};
use crate::signer::{DEVICES, device};

/// Number of calls at once.
const CALLERS: usize = 16;

/// A method of `PostureService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `Lookup` of a device of the management.
    Lookup,
    /// `Check` of such a device by [`POLICY`].
    Check,
}

/// The server whose answer is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The sidecar.
    Sidecar,
    /// The server whose methods do nothing.
    Empty,
}

impl Call {
    async fn made(self, client: &mut PostureServiceClient<Channel>, device: String, of: Of) -> anyhow::Result<()> {
        match self {
            Self::Lookup => {
                let request = LookupRequest { identifier: device, providers: vec![MANAGEMENT.to_owned()], ..LookupRequest::default() };
                let answers = client.lookup(request).await?.into_inner().answers;
                let right = match of {
                    Of::Sidecar => {
                        matches!(answers.as_slice(), [answer] if answer.outcome() == Outcome::Found && answer.source == "cached")
                    }
                    Of::Empty => answers.is_empty(),
                };
                ensure!(right, "{answers:?}");
            }
            Self::Check => {
                let request = CheckRequest { policy: POLICY.to_owned(), identifier: device, ..CheckRequest::default() };
                let answer = client.check(request).await?.into_inner();
                let right = match of {
                    Of::Sidecar => Decision::Allow,
                    Of::Empty => Decision::Unspecified,
                };
                ensure!(answer.decision() == right, "{answer:?}");
            }
        }
        Ok(())
    }
}

/// Measures the CPU of a server for one call.
pub(crate) async fn per_call(
    server: u32,
    client: &PostureServiceClient<Channel>,
    call: Call,
    of: Of,
    calls: usize,
) -> anyhow::Result<Duration> {
    let usage = Usage::start(&[server])?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = client.clone();
        callers.spawn(async move {
            for number in 0..calls / CALLERS {
                call.made(&mut client, device((number * CALLERS + caller) % DEVICES), of).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let [used] = usage.stop()?.try_into().ok().context("one process")?;
    Ok(used / u32::try_from(calls / CALLERS * CALLERS)?)
}

/// Connects a client to a socket.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<PostureServiceClient<Channel>> {
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok(PostureServiceClient::new(channel))
}
