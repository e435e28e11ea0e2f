//! A connection to whichever host of a server takes writes, made anew where it broke.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, timeout, timeout_at};

use super::code::{NO_TABLE, ends, fault, state};
use super::server::{Host, Server};
use crate::error::StoreError;

/// What a connection is for. Each purpose has its own, so that none waits for another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Writing decisions, keys and pairs of identifiers.
    Decisions,
    /// Writing rulings.
    Rulings,
    /// Reading decisions, which may take long.
    Listing,
    /// Reading keys.
    Keys,
    /// Hearing of changes of rulings, and of the caches of others.
    News,
    /// Claiming webhooks.
    Claims,
    /// Telling others of caches.
    Caches,
}

/// A connection that may be there.
#[derive(Debug)]
pub(super) struct Link {
    server: Arc<Server>,
    purpose: Purpose,
    /// The store that has to be there; `None` while it is being opened.
    store: Option<String>,
    connection: Option<Idle>,
    /// Place of the host that was connected to last.
    host: usize,
    trouble: Option<Trouble>,
}

/// A connection that nobody uses, and since when.
#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    since: Instant,
}

/// Why there is no connection, and when it is tried again.
#[derive(Debug)]
struct Trouble {
    why: NoHost,
    pause: Duration,
    again: Instant,
}

/// Why no host can be used.
#[derive(Clone, Debug)]
enum NoHost {
    /// For the cause that each has.
    Away(String),
    /// This one has another store.
    Another(String),
}

impl From<NoHost> for StoreError {
    fn from(why: NoHost) -> Self {
        match why {
            NoHost::Away(causes) => Self::Away(causes),
            NoHost::Another(host) => Self::Another(host),
        }
    }
}

/// A connection in use. One that is not given back, since its user stopped waiting, ends: what the server is about to say on it
/// is not for the next user.
pub(super) struct Session<'l> {
    home: &'l mut Option<Idle>,
    pub(super) connection: PgConnection,
    /// The moment at which its use ends in any case.
    pub(super) deadline: Instant,
}

/// Runs a statement over a link, in bounded time.
macro_rules! ask {
    ($link:expr, $connection:ident => $statement:expr) => {
        $crate::postgres::link::ask!($link, $crate::postgres::link::BOUND, $connection => $statement)
    };
    ($link:expr, $bound:expr, $connection:ident => $statement:expr) => {
        match $link.session_for($bound).await {
            Ok(mut session) => {
                let $connection = &mut session.connection;
                let asked = tokio::time::timeout_at(session.deadline, $statement).await;
                session.end(asked)
            }
            Err(error) => Err(error),
        }
    };
}
pub(super) use ask;

impl Link {
    /// Makes a link without a connection.
    pub(super) const fn new(server: Arc<Server>, purpose: Purpose, store: Option<String>) -> Self {
        Self { server, purpose, store, connection: None, host: 0, trouble: None }
    }

    /// Demands from now on that the store of this id is there.
    pub(super) fn demand(&mut self, store: String) {
        self.store = Some(store);
    }

    /// Place of the host that was connected to last.
    pub(super) const fn host(&self) -> usize {
        self.host
    }

    /// Takes the connection, or makes one, for so long.
    ///
    /// # Errors
    /// [`StoreError`]: no host can be used, or none could be a moment ago.
    pub(super) async fn session_for(&mut self, bound: Duration) -> Result<Session<'_>, StoreError> {
        let deadline = Instant::now() + bound;
        let connection = match self.living().await {
            Some(connection) => connection,
            None => self.connect(deadline).await?,
        };
        Ok(Session { home: &mut self.connection, connection, deadline })
    }

    /// The connection that is there, if the server still answers on it.
    async fn living(&mut self) -> Option<PgConnection> {
        let Idle { mut connection, since } = self.connection.take()?;
        let lives = since.elapsed() < FRESH || timeout(PING, connection.ping()).await.is_ok_and(|answer| answer.is_ok());
        lives.then_some(connection)
    }

    /// Connects to the first host that takes writes, beginning with the last one.
    async fn connect(&mut self, deadline: Instant) -> Result<PgConnection, StoreError> {
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| Instant::now() < trouble.again) {
            return Err(trouble.why.clone().into());
        }
        let server = Arc::clone(&self.server);
        let mut why = Vec::new();
        let mut another = None;
        for place in (0..server.hosts().len()).map(|number| (self.host + number) % server.hosts().len()) {
            let Some(host) = server.hosts().get(place) else { continue };
            let until = deadline.min(Instant::now() + CONNECT);
            match timeout_at(until, self.try_host(host)).await {
                Ok(Ok(connection)) => {
                    self.host = place;
                    self.trouble = None;
                    return Ok(connection);
                }
                Ok(Err(Refusal::Another)) => another = Some(host.to_string()),
                Ok(Err(Refusal::Because(cause))) => why.push(format!("{host}: {cause}")),
                Err(_) => why.push(format!("{host}: no answer in time")),
            }
        }
        // Hosts that say nothing take the time of those behind them, so the next round begins with another one.
        self.host = (self.host + 1) % server.hosts().len().max(1);
        let why = another.map_or_else(|| NoHost::Away(why.join("; ")), NoHost::Another);
        let pause = self.trouble.take().map_or(FIRST_PAUSE, |trouble| trouble.pause.saturating_mul(2).min(LONGEST_PAUSE));
        // Of many that lost one server, not all come at once.
        let again = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
        self.trouble = Some(Trouble { why: why.clone(), pause, again });
        Err(why.into())
    }

    /// Connects to a host, and looks whether it takes writes and has the store.
    async fn try_host(&self, host: &Host) -> Result<PgConnection, Refusal> {
        let application = match self.purpose {
            Purpose::Decisions => "stepward decisions",
            Purpose::Rulings => "stepward rulings",
            Purpose::Listing => "stepward listing",
            Purpose::Keys => "stepward keys",
            Purpose::News => "stepward news",
            Purpose::Claims => "stepward claims",
            Purpose::Caches => "stepward caches",
        };
        let mut connection = self.server.options(host, application).connect().await?;
        let (standby, version, encoding): (bool, i32, String) = sqlx::query_as(LOOK).fetch_one(&mut connection).await?;
        if standby {
            return Err(Refusal::Because("it only reads, as a standby does".to_owned()));
        }
        if version < OLDEST {
            return Err(Refusal::Because(format!("it is PostgreSQL {}, and 14 is the oldest that will do", version / 10_000)));
        }
        if encoding != "UTF8" {
            return Err(Refusal::Because(format!("the database has the encoding {encoding}: make one with the encoding UTF8")));
        }
        sqlx::raw_sql(SET).execute(&mut connection).await?;
        if matches!(self.purpose, Purpose::News) {
            // To say what was heard must not wait for a standby: where that is gone, nobody would be answered.
            sqlx::raw_sql("set synchronous_commit = 'local'").execute(&mut connection).await?;
        }
        if matches!(self.purpose, Purpose::Claims) {
            // Every webhook waits for a claim, and a crash of the server may cost those of its last moments: the services that made
            // them still know them.
            sqlx::raw_sql("set synchronous_commit = 'off'").execute(&mut connection).await?;
        }
        if let Some(wanted) = &self.store {
            match sqlx::query_scalar::<_, String>(STORE).fetch_optional(&mut connection).await {
                Ok(found) if found.as_ref() == Some(wanted) => {}
                Ok(_) => return Err(Refusal::Another),
                Err(error) if state(&error) == NO_TABLE => return Err(Refusal::Another),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(connection)
    }
}

impl Session<'_> {
    /// Gives the connection back, unless it broke.
    pub(super) fn end<T>(self, asked: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>) -> Result<T, StoreError> {
        let answer = asked.map_err(|_| StoreError::Slow)?;
        if !answer.as_ref().is_err_and(ends) {
            *self.home = Some(Idle { connection: self.connection, since: Instant::now() });
        }
        answer.map_err(fault)
    }
}

/// Why a host is not used.
enum Refusal {
    /// The store of another id is there, or none.
    Another,
    /// For a cause in words.
    Because(String),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        let said = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        match &*state(&error) {
            denied if denied.starts_with("28") => Self::Because(format!("{said}: see [store] password and the server's pg_hba.conf")),
            _ => Self::Because(said),
        }
    }
}

/// Whether the server only reads, its version, and the encoding of the database.
const LOOK: &str = "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool,
    current_setting('server_version_num')::int, current_setting('server_encoding')";

/// What holds for a connection: nothing but what is meant is called by a name, a statement ends before its asker stops waiting, a
/// server forgets an asker who is gone, and what was written is on the disk.
const SET: &str = "set search_path = pg_catalog, pg_temp;
    set statement_timeout = '6s';
    set lock_timeout = '5s';
    set idle_in_transaction_session_timeout = '10s';
    set tcp_user_timeout = '10s';
    set tcp_keepalives_idle = '10s';
    set default_transaction_isolation = 'read committed';
    set jit = off;
    set client_min_messages = warning;
    select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'";

const STORE: &str = "select store from stepward.schema_version";

/// PostgreSQL 14.
const OLDEST: i32 = 140_000;

/// Longest time for connecting and a statement together: shorter than a caller of the store waits, so that the error says what
/// was waited for.
pub(super) const BOUND: Duration = Duration::from_secs(7);

/// Longest time for connecting to one host, so that there is time for others.
const CONNECT: Duration = Duration::from_secs(2);

/// Time for which a connection is believed to live, and for which one that is older may take to show that it does.
const FRESH: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(1);

/// Time until connecting is tried again after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_not_there_is_tried_less_and_less_often() {
        let server = Arc::new(Server::parse("postgres://me@/stepward?host=/nowhere/at/all", None).unwrap());
        let mut link = Link::new(server, Purpose::Keys, None);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            for _ in 0..10 {
                let Err(StoreError::Away(why)) = link.session_for(BOUND).await.map(drop) else { panic!("there is no server") };
                assert!(why.starts_with("/nowhere/at/all:5432: "), "{why}");
                let trouble = link.trouble.as_ref().unwrap();
                let left = trouble.again - Instant::now();
                assert!(left >= trouble.pause / 2 && left <= trouble.pause, "{left:?} of {:?}", trouble.pause);
            }
            let trouble = link.trouble.as_ref().unwrap();
            pauses.push(trouble.pause.as_millis());
            tokio::time::advance(trouble.pause).await;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_that_take_the_time_of_others_are_not_tried_first_for_ever() {
        let url = "postgres://me@/stepward?host=/nowhere/one,/nowhere/two,/nowhere/three";
        let mut link = Link::new(Arc::new(Server::parse(url, None).unwrap()), Purpose::News, None);
        for next in [1, 2, 0, 1] {
            let _ = link.session_for(BOUND).await.map(drop);
            assert_eq!(link.host(), next);
            tokio::time::advance(LONGEST_PAUSE).await;
        }
    }
}
