//! Hearing of changes of rulings, for services that share a store.
//!
//! Whoever changes a ruling counts the change in one row, which it holds until the change is committed. So changes are committed
//! in the order of their numbers, and a service that remembers the last number misses none. A notification only wakes: the table
//! of changes is the truth, and is looked at all the time.

use std::collections::BTreeSet;
use std::time::Duration;

use clock::Span;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};

use super::news::What;
use super::text::{kept, read};
use super::{notices, rows};
use crate::columns;
use crate::id::DecisionId;
use crate::mark::Mark;
use crate::news::{Changes, Heard, News, Rulings, Told};
use crate::notices::Notices;

/// A service on a store, as the others see it.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// A random id, of this process.
    pub(crate) id: String,
    /// The name for people.
    pub(crate) name: String,
    /// Time for which the service answers though it hears nothing.
    pub(crate) limit: Duration,
}

/// The row of [`HEAR`]: of rulings the last change, its random number, that of the change that was heard, and the oldest; and the same
/// of notices.
type Row = (i64, Option<i64>, Option<i64>, Option<i64>, i64, Option<i64>, Option<i64>, Option<i64>);

/// Says what this service has heeded of rulings and that it lives, and reads what changed since, and what is told of caches since
/// `noticed`.
pub(super) async fn hear(
    connection: &mut PgConnection,
    replica: &Replica,
    heard: Heard,
    noticed: Heard,
    now: Span,
) -> Result<(News, Notices), Error> {
    let Replica { id, name, limit } = replica;
    let until = limit.saturating_add(MARGIN).as_secs_f64();
    let query = sqlx::query_as(HEAR).bind(id).bind(kept(name)).bind(heard.version).bind(until).bind(heard.token).bind(noticed.version);
    let row: Row = query.fetch_one(&mut *connection).await?;
    let (version, token, mine, oldest, last, last_token, noticed_token, oldest_notice) = row;
    let last = notices::Last { current: Heard { version: last, token: last_token }, heard: noticed_token, oldest: oldest_notice };
    let notices = notices::since(&mut *connection, id, noticed, last).await?;
    let news = rulings_since(connection, heard, Last { current: Heard { version, token }, heard: mine, oldest }, now).await?;
    Ok((news, notices))
}

/// The last change of rulings, and whether the one that was heard is there still.
struct Last {
    current: Heard,
    /// Random number of the change with the number of the one that was heard.
    heard: Option<i64>,
    /// The oldest change that is still told.
    oldest: Option<i64>,
}

async fn rulings_since(connection: &mut PgConnection, heard: Heard, last: Last, now: Span) -> Result<News, Error> {
    let Last { current, heard: mine, oldest } = last;
    let version = current.version;
    if current == heard {
        return Ok(News { heard, more: false, told: Told::Nothing });
    }
    let oldest = oldest.unwrap_or(i64::MAX);
    // Every change has rows until so many others were made, and a row has the number of its change.
    let went_back = version < heard.version || (heard.token.is_some() && mine != heard.token && oldest <= heard.version);
    if went_back || mine != heard.token || oldest > heard.version.saturating_add(1) {
        let mut all = all(connection, now).await?;
        all.went_back = went_back;
        return Ok(News { heard: all.heard, more: false, told: Told::All(all) });
    }
    let until = version.min(heard.version.saturating_add(AT_ONCE));
    let rows: Vec<(i64, String, String, i64)> = sqlx::query_as(CHANGES).bind(heard.version).bind(until).fetch_all(&mut *connection).await?;
    // A change without rows is one that others did not tell of, or that were too many since; nobody may go on as if it were none.
    let told: BTreeSet<i64> = rows.iter().map(|(version, ..)| *version).collect();
    if !(heard.version.saturating_add(1)..=until).all(|version| told.contains(&version)) {
        let all = all(connection, now).await?;
        return Ok(News { heard: all.heard, more: false, told: Told::All(all) });
    }
    let token = rows.last().map(|(.., token)| *token);
    let ids = |what: What| -> Vec<String> {
        rows.iter().filter(|(_, _, of, _)| of == what.as_str()).map(|(_, ruling, ..)| ruling.clone()).collect()
    };
    let (made, mut covers) = (ids(What::Made), ids(What::Covers));
    let forgotten = ids(What::Forgotten).iter().map(|id| columns::id(id)).collect::<Result<_, _>>()?;
    let rulings = if made.is_empty() { Vec::new() } else { rows::rulings_of(connection, &made).await? };
    covers.extend(made);
    let covered = if covers.is_empty() { Vec::new() } else { covered(connection, &covers).await? };
    let heard = Heard { version: until, token };
    Ok(News { heard, more: until < version, told: Told::Changes(Changes { made: rulings, covered, forgotten }) })
}

/// All rulings that have not ended, with the last change that was made to any, as of one moment.
pub(super) async fn all(connection: &mut PgConnection, now: Span) -> Result<Rulings, Error> {
    let mut step = connection.begin_with("begin isolation level repeatable read read only").await?;
    let (version, token): (i64, Option<i64>) =
        sqlx::query_as("select version, token from stepward.changes_of_rulings").fetch_one(&mut *step).await?;
    let rulings = rows::rulings(&mut step, now).await?;
    let covered = rows::covers(&mut step).await?;
    let forgotten: Vec<String> = sqlx::query_scalar("select id from stepward.forgotten").fetch_all(&mut *step).await?;
    step.commit().await?;
    let forgotten = forgotten.iter().map(|id| columns::id(id)).collect::<Result<_, _>>()?;
    Ok(Rulings { heard: Heard { version, token }, rulings, covered, went_back: false, forgotten })
}

async fn covered(connection: &mut PgConnection, of: &[String]) -> Result<Vec<(DecisionId, Mark)>, Error> {
    let query = sqlx::query_as("select ruling, mark from stepward.covers where ruling = any($1)");
    let rows: Vec<(String, i64)> = query.bind(of).fetch_all(connection).await?;
    rows.into_iter().map(|(id, mark)| Ok((columns::id(&id)?, Mark(mark)))).collect()
}

/// Says that this service is about to hear everything: who changes a ruling from now on waits for it.
pub(super) async fn greet(connection: &mut PgConnection, replica: &Replica) -> Result<(), Error> {
    let until = replica.limit.saturating_add(MARGIN).as_secs_f64();
    let query = sqlx::query(ATTEND).bind(&replica.id).bind(kept(&replica.name)).bind(0_i64).bind(until).bind(None::<i64>);
    query.execute(&mut *connection).await?;
    // Services that ended without a word.
    sqlx::query("delete from stepward.replicas where until < now() - interval '1 hour'").execute(connection).await.map(drop)
}

/// Says that this service answers nobody any more.
pub(super) async fn leave(connection: &mut PgConnection, replica: &Replica) -> Result<(), Error> {
    sqlx::query("delete from stepward.replicas where id = $1").bind(&replica.id).execute(connection).await.map(drop)
}

/// Number of changes so far.
pub(super) async fn version(connection: &mut PgConnection) -> Result<i64, Error> {
    sqlx::query_scalar("select version from stepward.changes_of_rulings").fetch_one(connection).await
}

/// Names of the other services that may answer by what they knew before a change, at most `most`.
pub(super) async fn unheard(connection: &mut PgConnection, replica: &Replica, version: i64, most: usize) -> Result<Vec<String>, Error> {
    let query = sqlx::query_scalar(UNHEARD).bind(&replica.id).bind(version).bind(i64::try_from(most).unwrap_or(i64::MAX));
    let names: Vec<String> = query.fetch_all(connection).await?;
    Ok(names.into_iter().map(read).collect())
}

/// Most changes that are told at once.
const AT_ONCE: i64 = 256;

/// How much longer than its own limit a service counts as one that answers: what it said last may be lost with the server.
const MARGIN: Duration = Duration::from_secs(5);

/// Writes the row of a service. What was heard counts only where that very change is there: a standby that took over without it
/// counts on from fewer.
macro_rules! attend {
    () => {
        "insert into stepward.replicas (id, name, heard, until)
        select $1, $2, case when $5::bigint is null or exists (select from stepward.news where version = $3 and token = $5)
                or exists (select from stepward.changes_of_rulings where version = $3 and token = $5) then $3 else 0 end,
            clock_timestamp() + make_interval(secs => $4)
        on conflict (id) do update set name = excluded.name, heard = excluded.heard, until = excluded.until"
    };
}

const ATTEND: &str = attend!();

/// Of rulings and then of notices: the last one; the random number of the one that was heard last, as it is now; and the oldest one
/// that is still told.
const HEAR: &str = concat!(
    "with attended as (",
    attend!(),
    ")
    select changes.version, changes.token, (select min(token) from stepward.news where version = $3),
        (select min(version) from stepward.news), notices.version, notices.token,
        (select token from stepward.notices where version = $6), (select min(version) from stepward.notices)
    from stepward.changes_of_rulings as changes, stepward.count_of_notices as notices"
);

const CHANGES: &str = "select version, ruling, what, token from stepward.news where version > $1 and version <= $2 order by version";

const UNHEARD: &str =
    "select name from stepward.replicas where id <> $1 and heard < $2 and until > clock_timestamp() order by name limit $3";
