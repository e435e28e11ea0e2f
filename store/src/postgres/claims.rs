//! Claims of webhooks on a server: many in one statement, by what is waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::QueryAs;
use sqlx::{Error, Postgres};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::link::{Link, ask};
use super::text::{kept, read};
use crate::claim::{Claim, Claimed};
use crate::error::StoreError;

/// The way to the task that claims.
#[derive(Debug)]
pub(super) struct Claims(mpsc::Sender<Order>);

/// An order to the task that claims.
#[derive(Debug)]
enum Order {
    Claim(Claim, oneshot::Sender<Result<Claimed, StoreError>>),
    /// The outcome of a webhook that was claimed: empty where it has to be decided anew, else the denial.
    Settle([u8; 32], String),
}

impl Claims {
    /// Starts the task that claims over this link, in the name of a service. It ends with the last sender of orders.
    pub(super) fn start(link: Link, service: String) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Claiming { link, service: service.into(), late: BTreeMap::new(), since: None }.run(queue));
        Self(orders)
    }

    /// Claims a webhook, within a second.
    pub(super) async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        let (sender, answer) = oneshot::channel();
        // Whoever finds the queue full decides alone, as where the server is away.
        self.0.try_send(Order::Claim(claim, sender)).map_err(|_| StoreError::Slow)?;
        match tokio::time::timeout(BOUND, answer).await {
            Ok(Ok(claimed)) => claimed,
            Ok(Err(_)) | Err(_) => Err(StoreError::Slow),
        }
    }

    /// Says what came of a claimed webhook, soon and in the background. A word that finds no room is lost: whoever is asked once
    /// more waits for it in vain, and decides.
    pub(super) fn settle(&self, body: [u8; 32], outcome: String) {
        let _ = self.0.try_send(Order::Settle(body, outcome));
    }
}

struct Claiming {
    link: Link,
    service: Arc<str>,
    /// Webhooks that were decided without the server, and when they were: it has to know who sent them once it is back.
    late: BTreeMap<[u8; 32], (Claim, Instant)>,
    /// Moment since which the server does not answer.
    since: Option<Instant>,
}

/// A claim, and who waits for the answer.
type Asked = (Claim, oneshot::Sender<Result<Claimed, StoreError>>);

impl Claiming {
    async fn run(mut self, mut queue: mpsc::Receiver<Order>) {
        let mut cleaned = Instant::now();
        // Claims of bytes that the same batch has already: one statement changes no row twice.
        let mut twice: Vec<Order> = Vec::new();
        loop {
            let mut orders = std::mem::take(&mut twice);
            if orders.is_empty() {
                tokio::select! {
                    count = queue.recv_many(&mut orders, BATCH) => if count == 0 { return },
                    () = tokio::time::sleep_until(cleaned + CLEAN) => {}
                    () = tokio::time::sleep(AGAIN), if !self.late.is_empty() => {}
                }
            }
            let (mut claims, mut settled): (BTreeMap<[u8; 32], Asked>, BTreeMap<[u8; 32], String>) = Default::default();
            for order in orders {
                match order {
                    Order::Claim(claim, _) if claims.contains_key(&claim.body) => twice.push(order),
                    // Whoever asks has given up, and decides: only who sent it is told.
                    Order::Claim(claim, waits) if waits.is_closed() => self.remember(claim),
                    Order::Claim(claim, waits) => drop(claims.insert(claim.body, (claim, waits))),
                    Order::Settle(body, outcome) => drop(settled.insert(body, outcome)),
                }
            }
            self.tell_late().await;
            // What is settled was claimed in an earlier batch, and whoever claims it now finds it settled.
            if !settled.is_empty() {
                let bodies: Vec<_> = settled.keys().map(|body| body.to_vec()).collect();
                let outcomes: Vec<_> = settled.values().map(|outcome| kept(outcome).into_owned()).collect();
                let _ = ask!(self.link, BOUND, connection => settle(connection, &self.service, &bodies, &outcomes));
            }
            if !claims.is_empty() {
                self.claim(claims).await;
            }
            // Claims do not wait for what is deleted.
            if cleaned.elapsed() >= CLEAN && queue.is_empty() {
                let deleted = ask!(self.link, BOUND, connection => clean(connection));
                let is_more = deleted.is_ok_and(|deleted| deleted >= AT_ONCE);
                cleaned = if is_more { Instant::now() - CLEAN + SOON } else { Instant::now() };
            }
        }
    }

    async fn claim(&mut self, claims: BTreeMap<[u8; 32], Asked>) {
        let all: Vec<Claim> = claims.values().map(|(claim, _)| *claim).collect();
        let answered = ask!(self.link, BOUND, connection => claim_all(connection, &self.service, &all));
        self.note(answered.as_ref().err());
        let mut found = answered.map_err(|error| error.text());
        for (body, (claim, waits)) in claims {
            let claimed = match &mut found {
                Ok(found) => found.remove(&body).ok_or(StoreError::Slow),
                Err(why) => Err(StoreError::Away(why.clone())),
            };
            if claimed.is_err() {
                self.remember(claim);
            }
            // Whoever asks may have given up.
            let _ = waits.send(claimed);
        }
    }

    /// Remembers a webhook that is decided without the server, to tell it later who sent it.
    fn remember(&mut self, claim: Claim) {
        if self.late.len() < LATE {
            self.late.entry(claim.body).or_insert_with(|| (claim, Instant::now()));
        }
    }

    /// Tells the server of webhooks that were decided without it.
    async fn tell_late(&mut self) {
        self.late.retain(|_, (claim, at)| at.elapsed() < claim.keep);
        for _ in 0..LATE_BATCHES {
            let late = self.late.values().take(BATCH);
            let some: Vec<_> = late.map(|(claim, at)| Claim { keep: claim.keep.saturating_sub(at.elapsed()), ..*claim }).collect();
            if some.is_empty() {
                return;
            }
            let told = ask!(self.link, BOUND, connection => tell(connection, &self.service, &some));
            self.note(told.as_ref().err());
            if told.is_err() {
                return;
            }
            for claim in &some {
                self.late.remove(&claim.body);
            }
        }
    }

    /// Logs when webhooks begin to be decided without the others, and when no more.
    fn note(&mut self, error: Option<&StoreError>) {
        match (error, self.since) {
            (Some(error), None) => {
                self.since = Some(Instant::now());
                tracing::warn!(
                    error = error.text(),
                    "webhooks are decided without asking what other services decided about the same bytes"
                );
            }
            (None, Some(since)) => {
                self.since = None;
                tracing::info!(seconds = since.elapsed().as_secs(), "other services are asked about the same bytes again");
            }
            _ => {}
        }
    }
}

/// Claims webhooks, each with another body. What others claimed while a statement ran is not seen by it, and is asked for once more.
async fn claim_all(connection: &mut PgConnection, service: &str, claims: &[Claim]) -> Result<BTreeMap<[u8; 32], Claimed>, Error> {
    let mut found = claim(&mut *connection, service, claims).await?;
    let missing: Vec<Claim> = claims.iter().filter(|claim| !found.contains_key(&claim.body)).copied().collect();
    if !missing.is_empty() {
        found.extend(claim(connection, service, &missing).await?);
    }
    Ok(found)
}

async fn claim(connection: &mut PgConnection, service: &str, claims: &[Claim]) -> Result<BTreeMap<[u8; 32], Claimed>, Error> {
    type Row = (Vec<u8>, bool, bool, bool, Option<String>);
    let columns = Columns::of(claims);
    let rows: Vec<Row> = columns.bind(sqlx::query_as(CLAIM), service).fetch_all(connection).await?;
    let answers = rows.into_iter().filter_map(|(body, granted, same, same_mode, outcome)| {
        let claimed = match outcome {
            _ if granted => Claimed::Granted,
            _ if !same => Claimed::Another,
            Some(outcome) if same_mode && !outcome.is_empty() => Claimed::Denied(read(outcome)),
            // Another service claimed anew what has to be decided anew, while the statement ran.
            _ => Claimed::Running,
        };
        Some((body.try_into().ok()?, claimed))
    });
    Ok(answers.collect())
}

/// Tells of webhooks that were decided without the server.
async fn tell(connection: &mut PgConnection, service: &str, claims: &[Claim]) -> Result<(), Error> {
    let columns = Columns::of(claims);
    let query: QueryAs<'_, _, (), _> = columns.bind(sqlx::query_as(TELL), service);
    query.fetch_all(connection).await.map(drop)
}

async fn settle(connection: &mut PgConnection, service: &str, bodies: &[Vec<u8>], outcomes: &[String]) -> Result<(), Error> {
    sqlx::query(SETTLE).bind(bodies).bind(outcomes).bind(service).execute(connection).await.map(drop)
}

/// Deletes some of the webhooks that nobody can send any more; returns their number.
async fn clean(connection: &mut PgConnection) -> Result<u64, Error> {
    Ok(sqlx::query(DELETE).execute(connection).await?.rows_affected())
}

/// Claims by their columns.
struct Columns {
    bodies: Vec<Vec<u8>>,
    webhooks: Vec<Vec<u8>>,
    senders: Vec<Vec<u8>>,
    modes: Vec<i16>,
    keeps: Vec<f64>,
}

impl Columns {
    fn of(claims: &[Claim]) -> Self {
        Self {
            bodies: claims.iter().map(|claim| claim.body.to_vec()).collect(),
            webhooks: claims.iter().map(|claim| claim.webhook.to_vec()).collect(),
            senders: claims.iter().map(|claim| claim.sender.to_vec()).collect(),
            modes: claims.iter().map(|claim| claim.mode).collect(),
            keeps: claims.iter().map(|claim| claim.keep.as_secs_f64()).collect(),
        }
    }

    fn bind<'q, O>(&'q self, query: QueryAs<'q, Postgres, O, PgArguments>, service: &'q str) -> QueryAs<'q, Postgres, O, PgArguments> {
        let query = query.bind(&self.bodies).bind(&self.webhooks).bind(&self.senders).bind(&self.modes);
        query.bind(&self.keeps).bind(service)
    }
}

/// Most orders in one batch.
const BATCH: usize = 512;

/// Most orders that wait for the task.
const QUEUE: usize = 8192;

/// Most webhooks that were decided without the server and are told later; they take about 10 MB.
const LATE: usize = 65_536;

/// Batches of webhooks that the server is told late before others are claimed.
const LATE_BATCHES: usize = 16;

/// Longest time for a batch: a webhook waits for it.
const BOUND: Duration = Duration::from_secs(1);

/// Time after which the server is told again what it does not know, where nothing else is asked.
const AGAIN: Duration = Duration::from_millis(500);

/// Time between two times at which webhooks are deleted that nobody can send any more.
const CLEAN: Duration = Duration::from_secs(5);

/// Time until deleting goes on where there is more to delete.
const SOON: Duration = Duration::from_millis(50);

/// A webhook is granted that is new, or that nobody can have sent within its window any more; and to the same sender once more what
/// has to be decided anew, what was decided for another mode, and what a service decides whose connection is gone.
const CLAIM: &str = "with asked as (
        select * from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::smallint[], $5::float8[]) as a (body, webhook, sender, mode, keep)),
    granted as (
        insert into stepward.webhooks as w (body, webhook, sender, mode, service, process, began, expires)
        select body, webhook, sender, mode, $6, pg_backend_pid(), clock_timestamp(), clock_timestamp() + make_interval(secs => keep)
        from asked
        on conflict (body) do update set webhook = excluded.webhook, sender = excluded.sender, mode = excluded.mode,
            service = excluded.service, process = excluded.process, began = excluded.began, outcome = null,
            expires = greatest(w.expires, excluded.expires)
        where w.expires < clock_timestamp()
            or w.webhook = excluded.webhook and w.sender = excluded.sender and (
                w.outcome = '' or w.outcome is not null and w.mode <> excluded.mode
                or w.outcome is null and (w.service = excluded.service or not exists (
                    select from pg_stat_get_activity(w.process) as a where coalesce(a.backend_start <= w.began, true))))
        returning w.body)
    select a.body, granted.body is not null, coalesce(w.webhook = a.webhook and w.sender = a.sender, false),
        coalesce(w.mode = a.mode, false), w.outcome
    from asked as a left join granted on granted.body = a.body left join stepward.webhooks as w on w.body = a.body
    where granted.body is not null or w.body is not null";

const TELL: &str = "insert into stepward.webhooks (body, webhook, sender, mode, service, process, began, expires, outcome)
    select body, webhook, sender, mode, $6, pg_backend_pid(), clock_timestamp(), clock_timestamp() + make_interval(secs => keep), ''
    from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::smallint[], $5::float8[]) as a (body, webhook, sender, mode, keep)
    on conflict (body) do nothing";

/// In the order of claims, so that the two never wait for each other.
const SETTLE: &str = "with mine as materialized (
        select body from stepward.webhooks where body = any($1) and service = $3 and outcome is null order by body for update)
    update stepward.webhooks as w set outcome = settled.outcome
    from mine join unnest($1::bytea[], $2::text[]) as settled (body, outcome) on settled.body = mine.body
    where w.body = mine.body and w.service = $3 and w.outcome is null";

const DELETE: &str = "delete from stepward.webhooks where body in (
        select body from stepward.webhooks where expires < clock_timestamp() - interval '1 second' order by expires limit 1000
        for update skip locked)";

/// As many rows as one [`DELETE`] deletes.
const AT_ONCE: u64 = 1000;

#[cfg(test)]
mod tests;
