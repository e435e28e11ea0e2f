//! Lists of whole inventories that one service reads for all: the lease to read one, and its pages.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};

use super::notices;
use crate::lists::{Begun, Ended};
use crate::notices::{About, Notice};

/// Takes or renews the lease to read lists of a kind; returns whether it is this holder's now.
pub(super) async fn lease(connection: &mut PgConnection, kind: &str, holder: &str, most: Duration) -> Result<bool, Error> {
    let taken = sqlx::query(LEASE).bind(kind).bind(holder).bind(most.as_secs_f64()).execute(connection).await?;
    Ok(taken.rows_affected() > 0)
}

/// Gives a lease back, and deletes the holder's list where that did not end.
pub(super) async fn release(connection: &mut PgConnection, kind: &str, holder: &str) -> Result<(), Error> {
    sqlx::query("delete from stepward.lists where id = $1 and ended is null").bind(holder).execute(&mut *connection).await?;
    sqlx::query("delete from stepward.leases where kind = $1 and holder = $2").bind(kind).bind(holder).execute(connection).await.map(drop)
}

/// Tells the others that a list begins now. What is told later comes after that.
pub(super) async fn begin(connection: &mut PgConnection, service: &str, begun: &Begun) -> Result<(), Error> {
    let Begun { id, kind, provider, since, started } = begun;
    // Whoever has the lease knows that no other list of the kind is being read: what did not end never will.
    sqlx::query("delete from stepward.lists where kind = $1 and ended is null").bind(kind).execute(&mut *connection).await?;
    let mut step = connection.begin().await?;
    let query = sqlx::query("insert into stepward.lists (id, kind, since, started) values ($1, $2, $3, $4)");
    query.bind(id).bind(kind).bind(since).bind(started).execute(&mut *step).await?;
    let notice = Notice { provider: provider.clone(), about: About::List(id.clone()) };
    notices::count(&mut step, service, rand::random(), &[notice]).await?;
    step.commit().await
}

/// Keeps a page of a list that has begun.
pub(super) async fn write(connection: &mut PgConnection, id: &str, number: i32, content: &[u8]) -> Result<(), Error> {
    let query = sqlx::query("insert into stepward.pages (list, number, content) values ($1, $2, $3)");
    query.bind(id).bind(number).bind(content).execute(connection).await.map(drop)
}

/// Lets the others have a list that ended, if the lease is still its own; returns whether it was. Lists that took its place a while
/// ago go, and what is left of those that never ended.
pub(super) async fn publish(connection: &mut PgConnection, kind: &str, ended: &Ended) -> Result<bool, Error> {
    let Ended { id, complete, pages, records, .. } = ended;
    let mut step = connection.begin().await?;
    let held = sqlx::query("select from stepward.leases where kind = $1 and holder = $2 and until > clock_timestamp() for update");
    if held.bind(kind).bind(id).fetch_optional(&mut *step).await?.is_none() {
        return Ok(false);
    }
    let query = sqlx::query(
        "update stepward.lists set complete = $2, pages = $3, records = $4, ended = clock_timestamp() where id = $1 and ended is null",
    );
    let done = query.bind(id).bind(complete).bind(pages).bind(records).execute(&mut *step).await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(TIDY).bind(kind).bind(id).bind(KEPT.as_secs_f64()).bind(OLDEST.as_secs_f64()).execute(&mut *step).await?;
    sqlx::query("delete from stepward.leases where until < clock_timestamp() - interval '1 day'").execute(&mut *step).await?;
    step.commit().await?;
    Ok(true)
}

/// The lists of a kind that ended, the last one first.
pub(super) async fn ended(connection: &mut PgConnection, kind: &str) -> Result<Vec<Ended>, Error> {
    let query = sqlx::query_as(
        "select id, since, started, complete, pages, records from stepward.lists
        where kind = $1 and ended is not null order by ended desc limit 8",
    );
    let rows: Vec<(String, Option<i64>, i64, bool, i32, i64)> = query.bind(kind).fetch_all(connection).await?;
    let read = |(id, since, started, complete, pages, records)| Ended { id, since, started, complete, pages, records };
    Ok(rows.into_iter().map(read).collect())
}

/// Deletes a list that began long ago, whichever kind it is: its service or its provider may be gone.
pub(super) async fn delete_old(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(DELETE_OLD).bind(OLDEST.as_secs_f64()).execute(connection).await.map(drop)
}

/// A page of a list.
pub(super) async fn page(connection: &mut PgConnection, id: &str, number: i32) -> Result<Option<Vec<u8>>, Error> {
    let query = sqlx::query_scalar("select content from stepward.pages where list = $1 and number = $2");
    query.bind(id).bind(number).fetch_optional(connection).await
}

/// Time for which a list is kept beside one that took its place, for services that are reading it.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// Time after which a list goes, of whichever kind.
const OLDEST: Duration = Duration::from_secs(24 * 3600);

/// A lease that holds for longer than any does was taken by another clock.
const LEASE: &str = "insert into stepward.leases as lease (kind, holder, until)
    values ($1, $2, clock_timestamp() + make_interval(secs => $3))
    on conflict (kind) do update set holder = excluded.holder, until = excluded.until
    where lease.until < clock_timestamp() or lease.holder = excluded.holder
        or lease.until > clock_timestamp() + interval '1 hour'";

const DELETE_OLD: &str = "delete from stepward.lists where id in (
        select id from stepward.lists where begun < clock_timestamp() - make_interval(secs => $1) limit 1)";

const TIDY: &str = "delete from stepward.lists where (kind = $1 and id <> $2
        and (ended is null or ended < clock_timestamp() - make_interval(secs => $3)))
    or begun < clock_timestamp() - make_interval(secs => $4)";
