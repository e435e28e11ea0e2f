//! The table of notices, from which services on a store hear what became of the caches of others.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};

use super::news::CHANNEL;
use super::text::{kept, read};
use crate::news::Heard;
use crate::notices::{About, Notice, Noticed, Notices};

/// The last notice, and whether the one that was heard is there still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) current: Heard,
    /// Random number of the notice with the number of the one that was heard.
    pub(super) heard: Option<i64>,
    /// The oldest notice that is kept.
    pub(super) oldest: Option<i64>,
}

/// Tells notices, all or none.
pub(super) async fn tell(connection: &mut PgConnection, service: &str, token: i64, notices: &[Notice]) -> Result<(), Error> {
    let mut step = connection.begin().await?;
    count(&mut step, service, token, notices).await?;
    step.commit().await
}

/// As [`tell`], within a transaction, until whose end nobody else tells anything.
pub(super) async fn count<'n>(step: &mut PgConnection, service: &str, token: i64, notices: &'n [Notice]) -> Result<(), Error> {
    let device = |notice: &'n Notice| match &notice.about {
        About::Purge(device) => (Some(device.kind().as_str()), Some(kept(device.normal()))),
        About::List(id) => (None, Some(kept(id))),
        _ => (None, None),
    };
    let (kinds, devices): (Vec<_>, Vec<_>) = notices.iter().map(device).unzip();
    let mark = |notice: &Notice| if let About::Device { mark, .. } = notice.about { Some(mark) } else { None };
    let (version, _): (i64, String) = sqlx::query_as(TELL)
        .bind(i64::try_from(notices.len()).unwrap_or(i64::MAX))
        .bind(token)
        .bind(service)
        .bind(notices.iter().map(|notice| kept(&notice.provider)).collect::<Vec<_>>())
        .bind(notices.iter().map(|notice| notice.about.as_str()).collect::<Vec<_>>())
        .bind(notices.iter().map(mark).collect::<Vec<_>>())
        .bind(kinds)
        .bind(devices)
        .bind(CHANNEL)
        .fetch_one(&mut *step)
        .await?;
    sqlx::query("delete from stepward.notices where version <= $1").bind(version.saturating_sub(KEPT)).execute(step).await.map(drop)
}

/// The last notice of now.
pub(super) async fn last(connection: &mut PgConnection) -> Result<Heard, Error> {
    let (version, token) = sqlx::query_as("select version, token from stepward.count_of_notices").fetch_one(connection).await?;
    Ok(Heard { version, token })
}

/// Reads the notices since one that was heard. As of rulings, a number alone does not name it: see `hearing.rs`.
pub(super) async fn since(connection: &mut PgConnection, service: &str, heard: Heard, last: Last) -> Result<Notices, Error> {
    let Last { current, heard: token, oldest } = last;
    if current == heard {
        return Ok(Notices::none(heard));
    }
    // Every notice has a row until so many others were told.
    let is_kept = oldest.is_none_or(|oldest| oldest <= heard.version);
    let went_back = current.version < heard.version || (heard.token.is_some() && token != heard.token && is_kept);
    let lost = Notices { heard: current, more: false, noticed: Noticed::Lost { went_back } };
    if current.version < heard.version || token != heard.token || oldest.unwrap_or(i64::MAX) > heard.version.saturating_add(1) {
        return Ok(lost);
    }
    type Row = (i64, i64, String, String, String, Option<i64>, Option<String>, Option<String>);
    let until = current.version.min(heard.version.saturating_add(AT_ONCE));
    let rows: Vec<Row> = sqlx::query_as(SINCE).bind(heard.version).bind(until).fetch_all(connection).await?;
    if !rows.iter().map(|(version, ..)| *version).eq(heard.version.saturating_add(1)..=until) {
        return Ok(lost);
    }
    let (mut notices, mut own) = (Vec::new(), Vec::new());
    let heard = Heard { version: until, token: rows.last().map(|(_, token, ..)| *token) };
    for (_, token, of, provider, what, mark, kind, device) in rows {
        if of == service {
            own.push(token);
            continue;
        }
        let device = device.map(read);
        let about = About::read(&what, mark, kind.as_deref(), device.as_deref());
        notices.push(Notice { provider: read(provider), about });
    }
    own.dedup();
    Ok(Notices { heard, more: until < current.version, noticed: Noticed::These(notices, own) })
}

/// Number of notices that are kept for services that hear late; one that is further behind drops everything.
const KEPT: i64 = 20_000;

/// Most notices that are read at once.
const AT_ONCE: i64 = 2048;

const TELL: &str = "with next as (update stepward.count_of_notices set version = version + $1, token = $2 returning version),
    told as (insert into stepward.notices (version, token, service, provider, what, mark, kind, device)
        select version - $1 + number, $2, $3, provider, what, mark, kind, device
        from next, unnest($4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[])
            with ordinality as notice (provider, what, mark, kind, device, number))
    select version, pg_notify($9, '')::text from next";

const SINCE: &str = "select version, token, service, provider, what, mark, kind, device
    from stepward.notices where version > $1 and version <= $2 order by version";
