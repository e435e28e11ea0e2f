//! Notifications of changes. They only wake: who is woken looks at the table of changes, and looks there without them too.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};

use super::news::CHANNEL;
use super::server::Server;

/// Wakes whoever waits at `wake` at each notification. `place` is that of the host that takes writes; each value, though it be the
/// same, has the connection made anew. Ends with the sender of `place`.
pub(super) async fn listen(server: Arc<Server>, mut place: watch::Receiver<usize>, wake: Arc<Notify>) {
    loop {
        let host = *place.borrow_and_update();
        let listened = async {
            if let Some(host) = server.hosts().get(host) {
                // The failure costs the time until the next look at the table.
                if let Err(error) = notified(&server, host, &wake).await {
                    tracing::debug!(%error, "the store's notifications are not heard");
                }
            }
            tokio::time::sleep(AGAIN).await;
        };
        tokio::select! {
            () = listened => {}
            changed = place.changed() => if changed.is_err() { return },
        }
    }
}

async fn notified(server: &Server, host: &super::server::Host, wake: &Notify) -> Result<(), sqlx::Error> {
    // A listener of sqlx takes its connection from a pool.
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT).connect_lazy_with(server.options(host, "stepward wakes"));
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    // What was notified before is not heard.
    wake.notify_one();
    while listener.try_recv().await?.is_some() {
        wake.notify_one();
    }
    Ok(())
}

/// Longest time for connecting.
const CONNECT: Duration = Duration::from_secs(2);

/// Time after which a connection is made again.
const AGAIN: Duration = Duration::from_secs(1);
