//! The sockets: one for each role, each serving nothing but its own services, and plain HTTP for metrics and health.

mod about;
mod authority;
mod budget;
pub mod certificates;
pub mod client;
mod examine;
mod listener;
mod places;
mod plain;
pub mod quota;
pub mod roles;
mod services;
mod socket;
mod tls;
mod told;

pub use authority::Names;
pub use examine::{Examined, examine};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use futures::StreamExt as _;
use proto::envoy::authorization_server::{self, AuthorizationServer};
use proto::v1::admin_service_server::{self, AdminServiceServer};
use proto::v1::filter_service_server::{self, FilterServiceServer};
use proto::v1::posture_service_server::{self, PostureServiceServer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codec::CompressionEncoding;

use crate::admin::Admin;
use crate::authz::Guard;
use crate::calls::drained;
use crate::config::{Entrance, Listen};
use crate::pages::{self, Status};
use crate::query::Posture;
use crate::runtime::Runtime;
use crate::webhook::Filters;
use about::{Health, REFLECTION, REFLECTION_ALPHA, reflection, reflection_alpha};
use budget::Budget;
use client::Refusals;
use listener::{Apart, alone, ending, serve, server};
use plain::{serve_events, serve_pages};
use quota::Streams;
use roles::Gate;
use services::QUESTION;
use socket::{Socket, is_free};
use tls::Door;

/// All listeners, bound and not yet served.
#[derive(Debug)]
pub struct Sockets {
    filter: Socket,
    query: Socket,
    push: Socket,
    admin: Socket,
    http: TcpListener,
    tcp: Vec<(Entrance, TcpListener)>,
}

impl Sockets {
    /// Binds all listeners; `tcp` are the addresses of those over TCP. Where a running process has one of the sockets, none is
    /// touched.
    ///
    /// # Errors
    /// An address or a socket is taken by a running process, or cannot be made.
    pub async fn bind(listen: &Listen, tcp: Vec<(Entrance, SocketAddr)>) -> anyhow::Result<Self> {
        for role in Listen::ROLES {
            is_free(&listen.socket(role)).await?;
        }
        let http = bind(listen.admin).await?;
        let mut bound = Vec::new();
        for (entrance, address) in tcp {
            bound.push((entrance, bind(address).await?));
        }
        Ok(Self {
            filter: Socket::bind(listen, "filter").await?,
            query: Socket::bind(listen, "query").await?,
            push: Socket::bind(listen, "push").await?,
            admin: Socket::bind(listen, "admin").await?,
            http,
            tcp: bound,
        })
    }

    /// Returns the address of plain HTTP.
    ///
    /// # Errors
    /// The error of the system.
    pub fn http_address(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Returns the address of a listener over TCP, if there is one.
    pub fn address(&self, of: Entrance) -> Option<SocketAddr> {
        self.tcp.iter().find(|(entrance, _)| *entrance == of).and_then(|(_, listener)| listener.local_addr().ok())
    }

    /// Serves until `drain` turns true and everything that was under way has been answered.
    pub async fn serve(self, runtime: Arc<Runtime>, status: Arc<Status>, drain: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { filter, query, mut push, admin, http, tcp } = self;
        // The runtimes are made before any client is let in: clients could hold all the descriptors.
        let (for_filter, for_query) = (Apart::new()?, Apart::new()?);
        let described = runtime.config().query.reflection;
        let (reflection, reflection_alpha) = (described.then(reflection).transpose()?, described.then(reflection_alpha).transpose()?);
        let reflected = if described { &[REFLECTION, REFLECTION_ALPHA][..] } else { &[] };
        let mut health = Health::default();
        let filter_health = health.of(&[filter_service_server::SERVICE_NAME]).await;
        let queries = [posture_service_server::SERVICE_NAME, authorization_server::SERVICE_NAME];
        let query_health = health.of(&[&queries, reflected].concat()).await;
        let admin_health = health.of(&[admin_service_server::SERVICE_NAME]).await;

        // Each listener has bounds of its own: whoever may use one takes nothing from the others.
        let mut serving = JoinSet::new();
        let filters = FilterServiceServer::new(Filters::new(Arc::clone(&runtime), drain.clone())).max_decoding_message_size(QUESTION);
        let budget = Budget::new("filter.sock", FILTER_BYTES);
        let mut router = server(FILTER_WINDOW).layer(Streams::new()).layer(budget.clone());
        let router = router.add_service(filters.clone()).add_service(filter_health.clone());
        serving.spawn(alone(("filter", for_filter), filter, ending(drain.clone(), budget), router)?);
        let posture = || {
            let posture = Posture::new(Arc::clone(&runtime), drain.clone());
            PostureServiceServer::new(posture).max_decoding_message_size(REQUEST).accept_compressed(CompressionEncoding::Gzip)
        };
        let guard = AuthorizationServer::new(Guard::new(Arc::clone(&runtime)))
            .max_decoding_message_size(AUTHORIZATION)
            .accept_compressed(CompressionEncoding::Gzip);
        for (entrance, listener) in tcp {
            let refusals = Arc::new(Refusals::new(entrance, Arc::clone(&runtime.engine.metrics)));
            let gate = Gate::new(entrance, Arc::clone(&runtime), Arc::clone(&refusals));
            let (window, budget) = match entrance {
                Entrance::Query => (WINDOW, Budget::new("tcp", QUERY_BYTES)),
                Entrance::Filter => (FILTER_WINDOW, Budget::new("filters over TCP", TCP_FILTER_BYTES)),
            };
            let server = server(window).max_connection_age(tls::CONNECTION).layer(gate).layer(Streams::new());
            let mut server = server.layer(budget.clone());
            let router = match entrance {
                // Answers are compressed for the network alone; on this machine that would cost more than it saves.
                Entrance::Query => server
                    .add_service(posture().send_compressed(CompressionEncoding::Gzip))
                    .add_service(guard.clone())
                    .add_service(query_health.clone())
                    .add_optional_service(reflection.clone())
                    .add_optional_service(reflection_alpha.clone()),
                Entrance::Filter => server.add_service(filters.clone()).add_service(filter_health.clone()),
            };
            let door = Door { entrance, runtime: Arc::clone(&runtime), refusals };
            let connections = tls::incoming(listener, door, drain.clone());
            let (drain, answered) = ending(drain.clone(), budget);
            serving.spawn(async move {
                tokio::select! {
                    served = router.serve_with_incoming_shutdown(connections, drained(drain)) => {
                        served.with_context(|| format!("serve {}", entrance.what()))
                    }
                    () = answered => Ok(()),
                }
            });
        }
        let budget = Budget::new("query.sock", QUERY_BYTES);
        let mut router = server(WINDOW).layer(Streams::new()).layer(budget.clone());
        let router = router.add_service(posture()).add_service(guard).add_service(query_health);
        let router = router.add_optional_service(reflection).add_optional_service(reflection_alpha);
        serving.spawn(alone(("query", for_query), query, ending(drain.clone(), budget), router)?);
        let service = AdminServiceServer::new(Admin::new(Arc::clone(&runtime)))
            .max_decoding_message_size(QUESTION)
            .accept_compressed(CompressionEncoding::Gzip);
        let budget = Budget::new("admin.sock", ADMIN_BYTES);
        let mut router = server(WINDOW).layer(Streams::new()).layer(budget.clone());
        serving.spawn(serve(admin, ending(drain.clone(), budget), router.add_service(service).add_service(admin_health)));

        let events = serve_events(push.incoming()?.boxed(), crate::push::routes(Arc::clone(&runtime)), drain.clone());
        serving.spawn(async move {
            events.await;
            // Dropping the socket removes its file.
            drop(push);
            Ok(())
        });

        // Metrics and health stay up until the rest has ended.
        let pages = tokio::spawn(serve_pages(http, pages::pages(runtime, status)));
        let ends = drain.clone();
        tokio::spawn(async move {
            drained(ends).await;
            health.end().await;
        });
        let mut result = Ok(());
        while let Some(served) = serving.join_next().await {
            if let Err(error) = served.context("serve a socket").flatten() {
                result = Err(error);
                serving.abort_all();
            }
        }
        pages.abort();
        result
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// Largest number of bytes that all clients of a listener have in flight, together less than a third of what the unit gives the
/// service. The longest answer there is, to a thousand checks with everything that was looked at, has room beside another one.
const FILTER_BYTES: usize = 128 << 20;
const TCP_FILTER_BYTES: usize = 64 << 20;
const QUERY_BYTES: usize = 192 << 20;
const ADMIN_BYTES: usize = 64 << 20;

/// Windows of HTTP/2: bytes that may come in on a connection and wait to be taken. Filters have many connections, so theirs is as
/// small as HTTP/2 begins with. SECURITY.md has what all of them come to.
const WINDOW: u32 = 256 << 10;
const FILTER_WINDOW: u32 = 64 << 10;

/// Longest question of Envoy's external authorization, in bytes: headers, a certificate, and a body that a route may add.
const AUTHORIZATION: usize = 1 << 20;

/// Longest request of people and machines, in bytes, after decompression.
const REQUEST: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::socket::{FILTERS, PLACES};
    use super::*;

    #[test]
    fn b_what_waits_on_all_connections_together_is_bounded_and_security_md_says_so() {
        let mebibytes = |connections: usize, window: u32| (connections * usize::try_from(window).unwrap()) >> 20;
        let tcp = [(Entrance::Query, WINDOW), (Entrance::Filter, FILTER_WINDOW)].map(|(at, window)| mebibytes(tls::places(at), window));
        let all = [mebibytes(FILTERS, FILTER_WINDOW), mebibytes(PLACES, WINDOW), tcp[0], tcp[1]];
        let told = include_str!("../../SECURITY.md").lines().find(|line| line.starts_with("| bytes that wait to be taken |")).unwrap();
        let [filter, socket, tcp, filters] = all;
        assert!(
            told.contains(&format!(
                "{filter} MiB on `filter.sock`, {filters} for filters over TCP, {socket} on `query.sock`, {tcp} for questions over TCP, {socket} on `admin.sock`"
            ))
        );
        // All windows together, were they full at once, take a quarter of what the unit gives the service.
        assert!(filter + filters + 2 * socket + tcp <= 512, "{all:?}");
    }
}
