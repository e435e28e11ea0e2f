//! Statements on the tables.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{DeviceId, IdentifierKind, Identity, PublicKey};
use posture::time::UnixTime;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};

use super::news::{self, What};
use super::text::{kept, read};
use crate::columns::{self, RulingRow, Stored};
use crate::decision::{Decision, Summary, Wanted};
use crate::id::DecisionId;
use crate::mark::{FIRST_COVERED, MOST_COVERED, Mark};
use crate::ruling::Ruling;
use crate::sent::{Lately, Sender, Sent};

/// The proven time, and what is counted and read at a start, which may take longer than a statement of the service.
pub(super) async fn look(connection: &mut PgConnection, keys: usize) -> Result<(Option<Proven>, Stored), Error> {
    let mut step = connection.begin().await?;
    sqlx::query("select set_config('statement_timeout', '60s', true)").execute(&mut *step).await?;
    let proven = proven(&mut step).await?;
    let stored = Stored {
        decisions: counted("select count(*) from stepward.decisions", &mut step).await?,
        links: count_links(&mut step).await?,
        keys: count_keys(&mut step).await?,
        newest_keys: newest_keys(&mut step, keys).await?,
    };
    step.commit().await?;
    Ok((proven, stored))
}

pub(super) async fn decision(connection: &mut PgConnection, id: DecisionId) -> Result<Option<String>, Error> {
    let query = sqlx::query_scalar("select record from stepward.decisions where id = $1");
    Ok(query.bind(id.to_string()).fetch_optional(connection).await?.map(read))
}

pub(super) async fn decisions(connection: &mut PgConnection, wanted: &Wanted) -> Result<Vec<Summary>, Error> {
    let since = wanted.since.map(|since| DecisionId::first(since).to_string()).unwrap_or_default();
    // The default is beyond every id, since no letter of an id is behind Z.
    let before = wanted.before.map_or_else(|| "~".to_owned(), |before| before.to_string());
    let webhooks: Option<Vec<Cow<'_, str>>> =
        (!wanted.webhooks.is_empty()).then(|| wanted.webhooks.iter().map(|webhook| kept(webhook)).collect());
    let query = sqlx::query_as(if wanted.device.is_some() { OF_A_DEVICE } else { OF_ALL });
    let query = query.bind(since).bind(before).bind(i64::from(wanted.limit)).bind(webhooks);
    let query = query.bind(wanted.decision.as_deref().map(kept)).bind(wanted.code.as_deref().map(kept));
    let query = match &wanted.device {
        Some(device) => query.bind(kept(device)),
        None => query,
    };
    let rows: Vec<(String, String, String, String, String)> = query.fetch_all(connection).await?;
    let summary = |(id, device, webhook, decision, code): (String, String, String, String, String)| {
        Ok(Summary { id: columns::id(&id)?, device: read(device), webhook: read(webhook), decision: read(decision), code: read(code) })
    };
    rows.into_iter().map(summary).collect()
}

/// Webhooks within `window` of the last one, as [`Lately`] takes them.
pub(super) async fn sent(connection: &mut PgConnection, window: Duration, most: u32) -> Result<Vec<Sent>, Error> {
    type Row = (i64, String, String, String, String, Option<Vec<u8>>);
    let mut lately = Lately::new(window, most);
    let mut before = i64::MAX;
    loop {
        let rows: Vec<Row> = sqlx::query_as(SENT).bind(before).bind(PAGE).fetch_all(&mut *connection).await?;
        let Some((last, ..)) = rows.last() else { return Ok(lately.into_found()) };
        before = *last;
        for (_, id, webhook, inputs, caller, digest) in rows {
            let sent = Sent { webhook: read(webhook), inputs: read(inputs), caller: Sender::kept(&read(caller), digest) };
            if lately.take(columns::id(&id)?.at(), sent) {
                return Ok(lately.into_found());
            }
        }
    }
}

/// Writes a batch and the keys that it allows, all or nothing; returns how many of the decisions are new.
pub(super) async fn insert(
    connection: &mut PgConnection,
    batch: &[Box<Decision>],
    key_retention: Duration,
    proven: Option<UnixTime>,
) -> Result<u64, Error> {
    let mut rounds = rounds(batch);
    let last = rounds.pop();
    let rows = Rows::of(batch)?;
    let bounds = (proven.map_or(i64::MAX, UnixTime::as_nanos), columns::nanos(key_retention));
    match (last, rounds.is_empty()) {
        (None, _) => rows.bound_to(sqlx::query(INSERT)).execute(connection).await.map(|done| done.rows_affected()),
        (Some(keys), true) => insert_with(connection, rows, keys, bounds).await,
        (Some(keys), false) => {
            let mut step = connection.begin().await?;
            for earlier in rounds {
                earlier.bound_to(sqlx::query(ALLOW), bounds).execute(&mut *step).await?;
            }
            let new = insert_with(&mut step, rows, keys, bounds).await?;
            step.commit().await?;
            Ok(new)
        }
    }
}

async fn insert_with(connection: &mut PgConnection, rows: Rows<'_>, keys: Keys<'_>, bounds: (i64, i64)) -> Result<u64, Error> {
    let query = keys.bound_to(sqlx::query(ALLOW_AND_INSERT), bounds);
    rows.bound_to(query).execute(connection).await.map(|done| done.rows_affected())
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Columns of decisions, in the order of [`INSERT`].
#[derive(Default)]
struct Rows<'b> {
    id: Vec<String>,
    device: Vec<Cow<'b, str>>,
    webhook: Vec<Cow<'b, str>>,
    decision: Vec<&'b str>,
    code: Vec<Cow<'b, str>>,
    inputs: Vec<Cow<'b, str>>,
    caller: Vec<Option<Cow<'b, str>>>,
    caller_digest: Vec<Option<&'b [u8]>>,
    record: Vec<String>,
}

impl<'b> Rows<'b> {
    fn of(batch: &'b [Box<Decision>]) -> Result<Self, Error> {
        let mut rows = Self::default();
        for decision in batch {
            rows.id.push(decision.id.to_string());
            rows.device.push(kept(decision.device.as_ref().map_or("", |device| &device.identifier)));
            rows.webhook.push(kept(&decision.webhook));
            rows.decision.push(decision.decision);
            rows.code.push(kept(&decision.code));
            rows.inputs.push(kept(&decision.inputs));
            rows.caller.push(decision.caller.as_deref().map(kept));
            rows.caller_digest.push(decision.caller_digest.as_ref().map(<[u8; 32]>::as_slice));
            let record = decision.record().map_err(|error| Error::Encode(error.into()))?;
            rows.record.push(match kept(&record) {
                Cow::Borrowed(_) => record,
                Cow::Owned(kept) => kept,
            });
        }
        Ok(rows)
    }

    fn bound_to(self, query: Query<'b>) -> Query<'b> {
        let query = query.bind(self.id).bind(self.device).bind(self.webhook).bind(self.decision).bind(self.code);
        query.bind(self.inputs).bind(self.caller).bind(self.caller_digest).bind(self.record)
    }
}

/// Columns of keys, in the order of [`ALLOW`], each key at most once.
#[derive(Default)]
struct Keys<'b> {
    sha256: Vec<&'b [u8]>,
    kind: Vec<&'static str>,
    identifier: Vec<Cow<'b, str>>,
    device: Vec<Cow<'b, str>>,
    trust: Vec<i64>,
    allowed_at: Vec<i64>,
}

impl<'b> Keys<'b> {
    fn bound_to(self, query: Query<'b>, (proven, retention): (i64, i64)) -> Query<'b> {
        let query = query.bind(self.sha256).bind(self.kind).bind(self.identifier).bind(self.device).bind(self.trust);
        query.bind(self.allowed_at).bind(proven).bind(retention)
    }
}

/// The keys of a batch. One statement changes a row once only, so a key that is allowed twice comes in a second round, and so on,
/// in the order in which it was allowed. Within a round keys are in their own order, so that no two writers wait for each other.
fn rounds(batch: &[Box<Decision>]) -> Vec<Keys<'_>> {
    let mut allowed = BTreeMap::<&[u8], Vec<(&Identity, UnixTime)>>::new();
    for decision in batch {
        if let Some((key, identity)) = &decision.key {
            allowed.entry(key.as_bytes()).or_default().push((identity, decision.at));
        }
    }
    let mut rounds = Vec::<Keys<'_>>::new();
    for (key, times) in allowed {
        for (number, (Identity { device, trust }, at)) in times.into_iter().enumerate() {
            if rounds.len() == number {
                rounds.push(Keys::default());
            }
            let Some(round) = rounds.get_mut(number) else { continue };
            round.sha256.push(key);
            round.kind.push(device.kind().as_str());
            round.identifier.push(kept(device.stated()));
            round.device.push(kept(device.normal()));
            round.trust.push(columns::rank(*trust));
            round.allowed_at.push(at.as_nanos());
        }
    }
    rounds
}

/// The device that a key was allowed for at `since` or later.
pub(super) async fn device_of(connection: &mut PgConnection, key: PublicKey, since: UnixTime) -> Result<Option<Identity>, Error> {
    let query = sqlx::query_as("select kind, identifier, trust from stepward.keys where sha256 = $1 and allowed_at >= $2");
    let row: Option<(String, String, i64)> =
        query.bind(key.as_bytes().as_slice()).bind(since.as_nanos()).fetch_optional(connection).await?;
    row.map(|(kind, identifier, trust)| columns::identity(&kind, &read(identifier), trust)).transpose()
}

/// Deletes keys that were last allowed before `time`, at most `most`; returns their number.
pub(super) async fn delete_keys_before(connection: &mut PgConnection, time: UnixTime, most: u32) -> Result<u64, Error> {
    deleted(sqlx::query(DELETE_KEYS).bind(time.as_nanos()).bind(i64::from(most)), connection).await
}

/// Deletes a key, if it is still this device's; returns the number of deleted keys.
pub(super) async fn delete_key(connection: &mut PgConnection, device: &DeviceId, key: PublicKey) -> Result<u64, Error> {
    let query = sqlx::query("delete from stepward.keys where sha256 = $1 and device = $2 and kind = $3");
    deleted(query.bind(key.as_bytes().as_slice()).bind(kept(device.normal())).bind(device.kind().as_str()), connection).await
}

/// The keys that were allowed last, the newest first; unreadable ones are left out.
async fn newest_keys(connection: &mut PgConnection, most: usize) -> Result<Vec<(DeviceId, PublicKey)>, Error> {
    let query = sqlx::query_as("select kind, identifier, sha256 from stepward.keys order by allowed_at desc limit $1");
    let rows: Vec<(String, String, Vec<u8>)> = query.bind(limit(most)).fetch_all(connection).await?;
    Ok(rows.into_iter().filter_map(|(kind, identifier, digest)| columns::key(&kind, &read(identifier), digest)).collect())
}

/// Deletes the `most` oldest keys; returns the number that was deleted.
pub(super) async fn delete_oldest_keys(connection: &mut PgConnection, most: u32) -> Result<u64, Error> {
    deleted(sqlx::query(DELETE_KEYS).bind(i64::MAX).bind(i64::from(most)), connection).await
}

pub(super) async fn count_keys(connection: &mut PgConnection) -> Result<u64, Error> {
    counted("select count(*) from stepward.keys", connection).await
}

/// Id of the oldest decision.
pub(super) async fn oldest(connection: &mut PgConnection) -> Result<Option<DecisionId>, Error> {
    let id: Option<String> = sqlx::query_scalar("select min(id) from stepward.decisions").fetch_one(connection).await?;
    id.map(|id| columns::id(&id)).transpose()
}

/// Deletes the oldest decisions from before `id`, at most `most`; returns their number.
pub(super) async fn delete_before(connection: &mut PgConnection, id: DecisionId, most: u32) -> Result<u64, Error> {
    deleted(sqlx::query(DELETE_BEFORE).bind(id.to_string()).bind(i64::from(most)), connection).await
}

/// Deletes the `most` decisions that were written first; returns the number that was deleted.
pub(super) async fn delete_oldest(connection: &mut PgConnection, most: u32) -> Result<u64, Error> {
    deleted(sqlx::query(DELETE_FIRST).bind(i64::from(most)), connection).await
}

/// Deletes rulings that ended a day ago, with what they cover, and what is remembered of those that were forgotten long ago. A
/// service whose clock is ahead of the others' deletes nothing that holds by theirs.
pub(super) async fn delete_ended_rulings(connection: &mut PgConnection, now: Span) -> Result<(), Error> {
    let long_ago = now.earliest.saturating_sub(AHEAD);
    sqlx::query(DELETE_ENDED).bind(now.corrected).bind(long_ago.as_nanos()).execute(&mut *connection).await?;
    sqlx::query("delete from stepward.forgotten where at < now() - interval '1 day'").execute(connection).await.map(drop)
}

pub(super) async fn rulings(connection: &mut PgConnection, now: Span) -> Result<Vec<Ruling>, Error> {
    of_rows(sqlx::query_as(RULINGS).bind(now.corrected).bind(now.earliest.as_nanos()).fetch_all(connection).await?)
}

/// Those of these rulings that are there.
pub(super) async fn rulings_of(connection: &mut PgConnection, ids: &[String]) -> Result<Vec<Ruling>, Error> {
    of_rows(sqlx::query_as(RULINGS_OF).bind(ids).fetch_all(connection).await?)
}

fn of_rows(rows: Vec<RulingRow>) -> Result<Vec<Ruling>, Error> {
    let texts = |(id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected): RulingRow| {
        (id, kind, identifier_kind, read(device), read(reason), read(made_by), made_at, until, proven_until, corrected)
    };
    rows.into_iter().map(|row| columns::ruling(texts(row))).collect()
}

/// Writes a row without meaning, of the size of a ruling, when a ruling could be written.
pub(super) async fn attempt(connection: &mut PgConnection) -> Result<(), Error> {
    let mut step = connection.begin().await?;
    sqlx::query("select from stepward.changes_of_rulings for update").execute(&mut *step).await?;
    let filling = vec![rand::random::<u8>(); FILLING];
    sqlx::query("update stepward.attempt set filling = $1").bind(filling).execute(&mut *step).await?;
    step.commit().await
}

/// Writes a ruling with the identifiers that it covers. It may be there already, from a write that took too long; and where it was
/// forgotten meanwhile, it stays so.
pub(super) async fn keep(connection: &mut PgConnection, ruling: &Ruling, covered: &[Mark]) -> Result<(), Error> {
    let id = [ruling.id.to_string()];
    let mut step = connection.begin().await?;
    news::count(&mut step, What::Made, &id).await?;
    let [id] = id;
    sqlx::query(KEEP)
        .bind(id)
        .bind(ruling.kind.as_str())
        .bind(ruling.identifier_kind.map(IdentifierKind::as_str))
        .bind(kept(&ruling.device))
        .bind(kept(&ruling.reason))
        .bind(kept(&ruling.made_by))
        .bind(ruling.made_at.as_nanos())
        .bind(ruling.until.map(UnixTime::as_nanos))
        .bind(ruling.proven_until.map(UnixTime::as_nanos))
        .bind(ruling.corrected)
        .execute(&mut *step)
        .await?;
    if !covered.is_empty() {
        cover(&mut step, covered.iter().map(|mark| (ruling.id, *mark))).await?;
    }
    step.commit().await
}

pub(super) async fn covers(connection: &mut PgConnection) -> Result<Vec<(DecisionId, Mark)>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as("select ruling, mark from stepward.covers").fetch_all(connection).await?;
    rows.into_iter().map(|(id, mark)| Ok((columns::id(&id)?, Mark(mark)))).collect()
}

/// Writes pairs of identifiers that stood in one record, and covers of locks that still exist. A failed write can be repeated.
pub(super) async fn learn(connection: &mut PgConnection, pairs: &[(Mark, Mark)], covers: &[(DecisionId, Mark)]) -> Result<(), Error> {
    for portion in pairs.chunks(MOST_PAIRS) {
        // A pair that is there twice is as new as the second time.
        let places: BTreeMap<(i64, i64), i64> = portion.iter().zip(0..).map(|((one, other), place)| ((one.0, other.0), place)).collect();
        let one: Vec<i64> = places.keys().map(|(one, _)| *one).collect();
        let other: Vec<i64> = places.keys().map(|(_, other)| *other).collect();
        let places: Vec<i64> = places.into_values().collect();
        sqlx::query(LINK).bind(one).bind(other).bind(places).execute(&mut *connection).await?;
    }
    if covers.is_empty() {
        return Ok(());
    }
    let locks: BTreeSet<String> = covers.iter().map(|(id, _)| id.to_string()).collect();
    let mut step = connection.begin().await?;
    news::count(&mut step, What::Covers, &locks.into_iter().collect::<Vec<_>>()).await?;
    cover(&mut step, covers.iter().copied()).await?;
    step.commit().await
}

async fn cover(connection: &mut PgConnection, covers: impl Iterator<Item = (DecisionId, Mark)>) -> Result<(), Error> {
    let (ids, marks): (Vec<String>, Vec<i64>) = covers.map(|(id, mark)| (id.to_string(), mark.0)).unzip();
    sqlx::query(COVER).bind(ids).bind(marks).execute(connection).await.map(drop)
}

/// Identifiers that stood in one record with any of these: the first seen, and then the last seen, within [`MOST_COVERED`].
pub(super) async fn partners(connection: &mut PgConnection, of: &[Mark]) -> Result<Vec<Mark>, Error> {
    let of: Vec<i64> = of.iter().map(|mark| mark.0).collect();
    let query = sqlx::query_as(PARTNERS).bind(of).bind(limit(FIRST_COVERED)).bind(limit(MOST_COVERED - FIRST_COVERED));
    let rows: Vec<(i64, i64)> = query.fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(_, partner)| Mark(partner)).collect())
}

/// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
pub(super) async fn links(connection: &mut PgConnection, most: usize) -> Result<Vec<(Mark, Mark)>, Error> {
    let query = sqlx::query_as("select a, b from stepward.links order by seen desc limit $1");
    let rows: Vec<(i64, i64)> = query.bind(limit(most)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(a, b)| (Mark(a), Mark(b))).collect())
}

/// The last proven time; where none was kept, the latest time that the store has seen.
pub(super) async fn proven(connection: &mut PgConnection) -> Result<Option<Proven>, Error> {
    let kept: Option<(i64, i64)> = sqlx::query_as("select proven, corrected from stepward.clock").fetch_optional(&mut *connection).await?;
    if let Some((time, corrected)) = kept {
        return Ok(Some(Proven { time: UnixTime::from_nanos(time), corrected }));
    }
    let ruled: Option<i64> = sqlx::query_scalar("select max(made_at) from stepward.rulings").fetch_one(&mut *connection).await?;
    let decided: Option<String> = sqlx::query_scalar("select max(id) from stepward.decisions").fetch_one(connection).await?;
    let decided = decided.map(|id| columns::id(&id)).transpose()?.map(DecisionId::at);
    Ok(ruled.map(UnixTime::from_nanos).max(decided).map(|time| Proven { time, corrected: 0 }))
}

pub(super) async fn keep_proven(connection: &mut PgConnection, proven: Proven) -> Result<(), Error> {
    sqlx::query(KEEP_PROVEN).bind(proven.time.as_nanos()).bind(proven.corrected).execute(connection).await.map(drop)
}

pub(super) async fn count_links(connection: &mut PgConnection) -> Result<u64, Error> {
    counted("select count(*) from stepward.links", connection).await
}

/// Deletes the `most` pairs that were seen the longest ago; returns the number that was deleted.
pub(super) async fn delete_links(connection: &mut PgConnection, most: u32) -> Result<u64, Error> {
    deleted(sqlx::query(DELETE_LINKS).bind(i64::from(most)), connection).await
}

/// Deletes rulings with what they cover, all of them or none, and remembers that they were forgotten.
pub(super) async fn forget(connection: &mut PgConnection, ids: &[DecisionId]) -> Result<(), Error> {
    let ids: Vec<String> = ids.iter().map(DecisionId::to_string).collect();
    let mut step = connection.begin().await?;
    news::count(&mut step, What::Forgotten, &ids).await?;
    sqlx::query("delete from stepward.rulings where id = any($1)").bind(&ids).execute(&mut *step).await?;
    sqlx::query("insert into stepward.forgotten (id) select unnest($1::text[]) on conflict do nothing")
        .bind(ids)
        .execute(&mut *step)
        .await?;
    step.commit().await
}

async fn deleted(query: Query<'_>, connection: &mut PgConnection) -> Result<u64, Error> {
    query.execute(connection).await.map(|done| done.rows_affected())
}

async fn counted(query: &'static str, connection: &mut PgConnection) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar(query).fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

pub(super) const OF_ALL: &str = "select id, device, webhook, decision, code from stepward.decisions
    where id >= $1 and id < $2
    and ($4::text[] is null or webhook = any($4)) and ($5::text is null or decision = $5) and ($6::text is null or code = $6)
    order by id desc limit $3";
/// The bounds and the order have the device, so that no plan but one by the index of devices has this order.
pub(super) const OF_A_DEVICE: &str = "select id, device, webhook, decision, code from stepward.decisions
    where (device, id) >= ($7, $1) and (device, id) < ($7, $2)
    and ($4::text[] is null or webhook = any($4)) and ($5::text is null or decision = $5) and ($6::text is null or code = $6)
    order by device desc, id desc limit $3";

/// Webhooks that the replay memory knows: those allowed, denied, or refused for an unavailable provider or a fault of ours.
pub(super) const SENT: &str = "select seq, id, webhook, inputs, caller, caller_digest from stepward.decisions
    where seq < $1 and (decision in ('allow', 'deny') or code in ('provider_unavailable', 'internal')) and caller is not null
    order by seq desc limit $2";

/// Number of webhooks that are read at once.
const PAGE: i64 = 1000;

/// Writes decisions, numbered in their order.
const INSERT: &str = "insert into stepward.decisions (id, device, webhook, decision, code, inputs, caller, caller_digest, record)
    select id, device, webhook, decision, code, inputs, caller, caller_digest, record
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::text[])
        with ordinality as new (id, device, webhook, decision, code, inputs, caller, caller_digest, record, place)
    order by place
    on conflict (id) do nothing";

/// The rule for a key that is allowed again: it is known for the device of the last allow, unless that was proven less well than
/// the known device. So the holder of an attested device's key cannot make it that of another device by a mere claim. For the
/// same device the best proof counts. What one service writes late, since the server was away, is no later allow than that of another. A binding beyond the retention counts for nothing; that it is beyond needs a proven time.
macro_rules! allow {
    () => {
        "insert into stepward.keys as known (sha256, kind, identifier, device, trust, allowed_at)
    select * from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    on conflict (sha256) do update set
        kind = excluded.kind, identifier = excluded.identifier, device = excluded.device,
        allowed_at = greatest(known.allowed_at, excluded.allowed_at),
        trust = case
            when (known.kind, known.device) = (excluded.kind, excluded.device)
                and known.allowed_at >= least(excluded.allowed_at, $7)::numeric - $8
            then greatest(known.trust, excluded.trust) else excluded.trust
        end
    where (known.kind, known.device) = (excluded.kind, excluded.device)
        or excluded.trust >= known.trust and excluded.allowed_at >= known.allowed_at or known.allowed_at < least(excluded.allowed_at, $7)::numeric - $8"
    };
}

const ALLOW: &str = allow!();

/// [`ALLOW`] and [`INSERT`] in one statement. Both are done, in whatever order.
const ALLOW_AND_INSERT: &str = concat!(
    "with allowed as (",
    allow!(),
    ")
    insert into stepward.decisions (id, device, webhook, decision, code, inputs, caller, caller_digest, record)
    select id, device, webhook, decision, code, inputs, caller, caller_digest, record
    from unnest($9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::bytea[], $17::text[])
        with ordinality as new (id, device, webhook, decision, code, inputs, caller, caller_digest, record, place)
    order by place
    on conflict (id) do nothing"
);

const DELETE_KEYS: &str = "delete from stepward.keys
    where sha256 = any(array(select sha256 from stepward.keys where allowed_at < $1 order by allowed_at limit $2))";

const DELETE_BEFORE: &str = "delete from stepward.decisions
    where id = any(array(select id from stepward.decisions where id < $1 order by id limit $2))";

const DELETE_FIRST: &str = "delete from stepward.decisions
    where seq = any(array(select seq from stepward.decisions order by seq limit $1))";

/// Sums may be beyond the greatest whole number.
/// How far ahead of the others' the clock of a service may be that deletes what has ended.
const AHEAD: Duration = Duration::from_secs(86_400);

const DELETE_ENDED: &str = "delete from stepward.rulings where until::numeric + greatest(0, $1::numeric - corrected) <= $2";

const RULINGS: &str = "select id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected
    from stepward.rulings where until is null or until::numeric + greatest(0, $1::numeric - corrected) > $2 order by id";

const RULINGS_OF: &str = "select id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected
    from stepward.rulings where id = any($1) order by id";

const KEEP: &str = "insert into stepward.rulings
    (id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected)
    select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 where not exists (select from stepward.forgotten where id = $1)
    on conflict (id) do nothing";

/// A lock that was taken back meanwhile gets no covers. It cannot be taken back while they are written.
const COVER: &str = "with locks as materialized (select id from stepward.rulings where id = any($1) for key share)
    insert into stepward.covers (ruling, mark)
    select locks.id, new.mark from unnest($1::text[], $2::bigint[]) as new (ruling, mark) join locks on locks.id = new.ruling
    order by 1, 2
    on conflict do nothing";

/// A pair that is seen again becomes the newest. Pairs come in their own order, so that no two writers wait for each other.
const LINK: &str = "with first as materialized (select nextval('stepward.links_seen') as number)
    insert into stepward.links (a, b, seen)
    select a, b, number + place from unnest($1::bigint[], $2::bigint[], $3::bigint[]) as new (a, b, place), first order by a, b
    on conflict (a, b) do update set seen = excluded.seen";

/// Most pairs in one statement: no more than the numbers that it takes.
const MOST_PAIRS: usize = 4096;

const PARTNERS: &str = "(select seen, b from stepward.links where a = any($1) order by seen, b limit $2)
    union (select seen, b from stepward.links where a = any($1) order by seen desc, b desc limit $3) order by seen, b";

const DELETE_LINKS: &str = "delete from stepward.links
    where seen = any(array(select seen from stepward.links order by seen limit $1))";

const KEEP_PROVEN: &str = "insert into stepward.clock (proven, corrected) values ($1, $2)
    on conflict (one) do update set proven = excluded.proven, corrected = excluded.corrected";

/// Length of what an attempt writes, as SQLite has it.
const FILLING: usize = 20_000;
