//! Statements on the database.

use std::sync::LazyLock;
use std::time::Duration;

use clock::{Proven, Span};
use futures::TryStreamExt as _;
use posture::identity::{DeviceId, IdentifierKind, Identity, PublicKey};
use posture::time::UnixTime;
use sqlx::sqlite::SqliteConnection;

use crate::columns::{self, RulingRow};
use crate::decision::{Decision, Summary, Wanted};
use crate::id::DecisionId;
use crate::mark::{FIRST_COVERED, MOST_COVERED, Mark};
use crate::ruling::Ruling;
use crate::sent::{Lately, Sender, Sent};

pub(super) async fn decision(connection: &mut SqliteConnection, id: DecisionId) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT record FROM decisions WHERE id = ?").bind(id.to_string()).fetch_optional(connection).await
}

pub(super) async fn decisions(connection: &mut SqliteConnection, wanted: &Wanted) -> Result<Vec<Summary>, sqlx::Error> {
    let since = wanted.since.map(|since| DecisionId::first(since).to_string()).unwrap_or_default();
    // The default is beyond every id, since no letter of an id is behind Z.
    let before = wanted.before.map_or_else(|| "~".to_owned(), |before| before.to_string());
    let statement = if wanted.device.is_some() { OF_A_DEVICE } else { OF_ALL };
    let query = sqlx::query_as(statement).bind(since).bind(before).bind(wanted.limit).bind(&wanted.device);
    // Ids of the webhooks in JSON; null for all webhooks.
    let webhooks = (!wanted.webhooks.is_empty()).then(|| serde_json::json!(wanted.webhooks).to_string());
    let query = query.bind(webhooks).bind(&wanted.decision).bind(&wanted.code);
    let rows: Vec<(String, String, String, String, String)> = query.fetch_all(connection).await?;
    let summary = |(id, device, webhook, decision, code): (String, String, String, String, String)| {
        Ok(Summary { id: columns::id(&id)?, device, webhook, decision, code })
    };
    rows.into_iter().map(summary).collect()
}

/// Webhooks within `window` of the last one, as [`Lately`] takes them.
pub(super) async fn sent(connection: &mut SqliteConnection, window: Duration, most: u32) -> Result<Vec<Sent>, sqlx::Error> {
    type Row = (String, String, String, String, Option<Vec<u8>>);
    let mut rows = sqlx::query_as::<_, Row>(SENT).fetch(connection);
    let mut lately = Lately::new(window, most);
    while let Some((id, webhook, inputs, caller, digest)) = rows.try_next().await? {
        if lately.take(columns::id(&id)?.at(), Sent { webhook, inputs, caller: Sender::kept(&caller, digest) }) {
            break;
        }
    }
    Ok(lately.into_found())
}

/// Writes a batch and the keys that it allows; returns how many of the decisions are new.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    batch: &[Box<Decision>],
    key_retention: Duration,
    proven: Option<UnixTime>,
) -> Result<u64, sqlx::Error> {
    let mut new = 0;
    // Keys go first: a key without its decision is of use, but a decision without its key would count as written.
    let keys: Vec<_> = batch.iter().filter_map(|decision| Some((decision.key.as_ref()?, decision.at))).collect();
    for portion in keys.chunks(MOST_ROWS) {
        let mut query = sqlx::query(statement(&ALLOW, portion.len())?);
        for ((key, Identity { device, trust }), at) in portion {
            query = query.bind(key.as_bytes().as_slice()).bind(device.kind().as_str()).bind(device.stated()).bind(device.normal());
            query = query.bind(columns::rank(*trust)).bind(at.as_nanos());
        }
        // The retention and the time are bound after the filled-up rows.
        for _ in portion.len() * KEY_COLUMNS..portion.len().next_power_of_two() * KEY_COLUMNS {
            query = query.bind(None::<i64>);
        }
        let proven = proven.map_or(i64::MAX, UnixTime::as_nanos);
        query.bind(columns::nanos(key_retention)).bind(proven).execute(&mut *connection).await?;
    }
    for portion in batch.chunks(MOST_ROWS) {
        let mut query = sqlx::query(statement(&INSERT, portion.len())?);
        for decision in portion {
            let device = decision.device.as_ref().map_or("", |device| &device.identifier);
            let record = decision.record().map_err(|error| sqlx::Error::Encode(error.into()))?;
            query = query.bind(decision.id.to_string()).bind(device).bind(&decision.webhook).bind(decision.decision);
            query = query.bind(&decision.code).bind(record).bind(decision.caller_digest.as_ref().map(<[u8; 32]>::as_slice));
        }
        new += query.execute(&mut *connection).await?.rows_affected();
    }
    Ok(new)
}

/// The statement for `rows` rows, or the next power of two, so that few statements are prepared, each once. Unbound values are
/// null, and a row without its key is ignored. One statement is one transaction, which SQLite itself rolls back if it fails.
fn statement(statements: &'static [String], rows: usize) -> Result<&'static str, sqlx::Error> {
    let power = usize::try_from(rows.next_power_of_two().ilog2()).unwrap_or(usize::MAX);
    statements.get(power).map(String::as_str).ok_or_else(|| sqlx::Error::Encode("more rows than a statement takes".into()))
}

/// The statements for [`statement`], each made by `statement` from the text of its `VALUES` and the number of its rows.
fn statements(columns: usize, statement: impl Fn(&str, usize) -> String) -> Vec<String> {
    let row = format!("({})", vec!["?"; columns].join(", "));
    (0..=MOST_ROWS.ilog2()).map(|power| statement(&vec![row.as_str(); 1 << power].join(", "), 1 << power)).collect()
}

/// The device that a key was allowed for at `since` or later.
pub(super) async fn device_of(connection: &mut SqliteConnection, key: PublicKey, since: UnixTime) -> Result<Option<Identity>, sqlx::Error> {
    let row: Option<(String, String, i64)> =
        sqlx::query_as(DEVICE_OF).bind(key.as_bytes().as_slice()).bind(since.as_nanos()).fetch_optional(connection).await?;
    row.map(|(kind, identifier, trust)| columns::identity(&kind, &identifier, trust)).transpose()
}

/// Deletes keys that were last allowed before `time`, at most `most`; returns their number.
pub(super) async fn delete_keys_before(connection: &mut SqliteConnection, time: UnixTime, most: u32) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(DELETE_KEYS).bind(time.as_nanos()).bind(most).execute(connection).await?.rows_affected())
}

/// Deletes a key, if it is still this device's; returns the number of deleted keys.
pub(super) async fn delete_key(connection: &mut SqliteConnection, device: &DeviceId, key: PublicKey) -> Result<u64, sqlx::Error> {
    let query = sqlx::query("DELETE FROM keys WHERE sha256 = ? AND device = ? AND kind = ?");
    let query = query.bind(key.as_bytes().as_slice()).bind(device.normal()).bind(device.kind().as_str());
    Ok(query.execute(connection).await?.rows_affected())
}

/// The keys that were allowed last, the newest first; unreadable ones are left out.
pub(super) async fn newest_keys(connection: &mut SqliteConnection, most: usize) -> Result<Vec<(DeviceId, PublicKey)>, sqlx::Error> {
    let query = sqlx::query_as("SELECT kind, identifier, sha256 FROM keys ORDER BY allowed_at DESC LIMIT ?");
    let rows: Vec<(String, String, Vec<u8>)> = query.bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(connection).await?;
    Ok(rows.into_iter().filter_map(|(kind, identifier, digest)| columns::key(&kind, &identifier, digest)).collect())
}

/// Deletes the `most` oldest keys; returns the number that was deleted.
pub(super) async fn delete_oldest_keys(connection: &mut SqliteConnection, most: u32) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(DELETE_KEYS).bind(i64::MAX).bind(most).execute(connection).await?.rows_affected())
}

pub(super) async fn count_keys(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM keys").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

pub(super) async fn count(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM decisions").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Id of the oldest decision.
pub(super) async fn oldest(connection: &mut SqliteConnection) -> Result<Option<DecisionId>, sqlx::Error> {
    let id: Option<String> = sqlx::query_scalar("SELECT min(id) FROM decisions").fetch_one(connection).await?;
    id.map(|id| columns::id(&id)).transpose()
}

/// Deletes the oldest decisions from before `id`, at most `most`; returns their number.
pub(super) async fn delete_before(connection: &mut SqliteConnection, id: DecisionId, most: u32) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(DELETE_BEFORE).bind(id.to_string()).bind(most).execute(connection).await?.rows_affected())
}

/// Deletes the `most` decisions that were written first; returns the number that was deleted. By time, decisions that were made
/// while the clock was behind would go instead.
pub(super) async fn delete_oldest(connection: &mut SqliteConnection, most: u32) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(DELETE_FIRST).bind(most).execute(connection).await?.rows_affected())
}

pub(super) async fn delete_ended_rulings(connection: &mut SqliteConnection, now: Span) -> Result<(), sqlx::Error> {
    let delete = sqlx::query("DELETE FROM rulings WHERE until + max(0, ? - corrected) <= ?");
    let ended = delete.bind(now.corrected).bind(now.earliest.as_nanos()).execute(&mut *connection).await?;
    if ended.rows_affected() > 0 {
        sqlx::query("DELETE FROM covers WHERE ruling NOT IN (SELECT id FROM rulings)").execute(connection).await?;
    }
    Ok(())
}

pub(super) async fn rulings(connection: &mut SqliteConnection, now: Span) -> Result<Vec<Ruling>, sqlx::Error> {
    let rows: Vec<RulingRow> = sqlx::query_as(RULINGS).bind(now.corrected).bind(now.earliest.as_nanos()).fetch_all(connection).await?;
    rows.into_iter().map(columns::ruling).collect()
}

/// Writes a row without meaning, of the size of a ruling.
pub(super) async fn attempt(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    // The row changes each time, since SQLite would not write an unchanged one.
    sqlx::query("UPDATE attempt SET filling = randomblob(length(filling))").execute(connection).await.map(drop)
}

/// Writes a ruling with the identifiers that it covers. There is no transaction: a full disk would end it unnoticed. The covers
/// come first, since without their ruling they mean nothing.
pub(super) async fn keep(connection: &mut SqliteConnection, ruling: &Ruling, covered: &[Mark]) -> Result<(), sqlx::Error> {
    let id = ruling.id.to_string();
    for portion in covered.chunks(MOST_ROWS) {
        let mut query = sqlx::query(statement(&COVER, portion.len())?);
        for mark in portion {
            query = query.bind(&id).bind(mark.0);
        }
        query.execute(&mut *connection).await?;
    }
    sqlx::query(KEEP)
        .bind(id)
        .bind(ruling.kind.as_str())
        .bind(ruling.identifier_kind.map(IdentifierKind::as_str))
        .bind(&ruling.device)
        .bind(&ruling.reason)
        .bind(&ruling.made_by)
        .bind(ruling.made_at.as_nanos())
        .bind(ruling.until.map(UnixTime::as_nanos))
        .bind(ruling.proven_until.map(UnixTime::as_nanos))
        .bind(ruling.corrected)
        .execute(connection)
        .await
        .map(drop)
}

pub(super) async fn covers(connection: &mut SqliteConnection) -> Result<Vec<(DecisionId, Mark)>, sqlx::Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT ruling, mark FROM covers").fetch_all(connection).await?;
    rows.into_iter().map(|(id, mark)| Ok((columns::id(&id)?, Mark(mark)))).collect()
}

/// Writes pairs of identifiers that stood in one record, and covers of locks that still exist. A failed write can be repeated.
pub(super) async fn learn(
    connection: &mut SqliteConnection,
    pairs: &[(Mark, Mark)],
    covers: &[(DecisionId, Mark)],
) -> Result<(), sqlx::Error> {
    for portion in pairs.chunks(MOST_ROWS) {
        let mut query = sqlx::query(statement(&LINK, portion.len())?);
        for (one, other) in portion {
            query = query.bind(one.0).bind(other.0);
        }
        query.execute(&mut *connection).await?;
    }
    for portion in covers.chunks(MOST_ROWS) {
        let mut query = sqlx::query(statement(&COVER_IF_LOCKED, portion.len())?);
        for (id, mark) in portion {
            query = query.bind(id.to_string()).bind(mark.0);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Identifiers that stood in one record with any of these: the first seen, and then the last seen, within [`MOST_COVERED`].
pub(super) async fn partners(connection: &mut SqliteConnection, of: &[Mark]) -> Result<Vec<Mark>, sqlx::Error> {
    let mut found: Vec<(i64, i64)> = Vec::new();
    for mark in of {
        found.extend(sqlx::query_as::<_, (i64, i64)>(PARTNERS).bind(mark.0).fetch_all(&mut *connection).await?);
    }
    found.sort_unstable();
    if found.len() > MOST_COVERED {
        let last = found.split_off(found.len() - (MOST_COVERED - FIRST_COVERED));
        found.truncate(FIRST_COVERED);
        found.extend(last);
    }
    Ok(found.into_iter().map(|(_, partner)| Mark(partner)).collect())
}

/// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
pub(super) async fn links(connection: &mut SqliteConnection, most: usize) -> Result<Vec<(Mark, Mark)>, sqlx::Error> {
    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT a, b FROM links ORDER BY seen DESC LIMIT ?")
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(a, b)| (Mark(a), Mark(b))).collect())
}

/// The last proven time; where an earlier release kept none, the latest time that the store has seen.
pub(super) async fn proven(connection: &mut SqliteConnection) -> Result<Option<Proven>, sqlx::Error> {
    let proven: Option<(i64, i64)> = sqlx::query_as("SELECT proven, corrected FROM clock").fetch_optional(&mut *connection).await?;
    if let Some((time, corrected)) = proven {
        return Ok(Some(Proven { time: UnixTime::from_nanos(time), corrected }));
    }
    let ruled: Option<i64> = sqlx::query_scalar("SELECT max(made_at) FROM rulings").fetch_one(&mut *connection).await?;
    let decided: Option<String> = sqlx::query_scalar("SELECT max(id) FROM decisions").fetch_one(connection).await?;
    let decided = decided.map(|id| columns::id(&id)).transpose()?.map(DecisionId::at);
    Ok(ruled.map(UnixTime::from_nanos).max(decided).map(|time| Proven { time, corrected: 0 }))
}

pub(super) async fn keep_proven(connection: &mut SqliteConnection, proven: Proven) -> Result<(), sqlx::Error> {
    let keep = sqlx::query("INSERT OR REPLACE INTO clock (id, proven, corrected) VALUES (1, ?, ?)");
    keep.bind(proven.time.as_nanos()).bind(proven.corrected).execute(connection).await.map(drop)
}

pub(super) async fn count_links(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM links").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Deletes the `most` pairs that were seen the longest ago; returns the number that was deleted.
pub(super) async fn delete_links(connection: &mut SqliteConnection, most: u32) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(DELETE_LINKS).bind(most).execute(connection).await?.rows_affected())
}

/// Deletes rulings, all of them or none: one statement is whole or not at all.
pub(super) async fn forget(connection: &mut SqliteConnection, ids: &[DecisionId]) -> Result<(), sqlx::Error> {
    let ids: Vec<String> = ids.iter().map(DecisionId::to_string).collect();
    let ids = serde_json::to_string(&ids).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query("DELETE FROM rulings WHERE id IN (SELECT value FROM json_each(?))").bind(&ids).execute(&mut *connection).await?;
    // Covers without their ruling mean nothing, and go when the next ruling ends.
    let _ = sqlx::query("DELETE FROM covers WHERE ruling IN (SELECT value FROM json_each(?))").bind(&ids).execute(connection).await;
    Ok(())
}

const OF_ALL: &str = "SELECT id, device, webhook, decision, code FROM decisions
    WHERE id >= ?1 AND id < ?2 AND ?4 IS NULL AND (?5 IS NULL OR webhook IN (SELECT value FROM json_each(?5)))
    AND (?6 IS NULL OR decision = ?6) AND (?7 IS NULL OR code = ?7)
    ORDER BY id DESC LIMIT ?3";
/// The index has the device, so that only the device's rows are read from the table.
const OF_A_DEVICE: &str = "SELECT id, device, webhook, decision, code FROM decisions INDEXED BY decisions_by_time
    WHERE device = ?4 AND id >= ?1 AND id < ?2 AND (?5 IS NULL OR webhook IN (SELECT value FROM json_each(?5)))
    AND (?6 IS NULL OR decision = ?6) AND (?7 IS NULL OR code = ?7)
    ORDER BY id DESC LIMIT ?3";

/// Webhooks that the replay memory knows: those allowed, denied, or refused for an unavailable provider or a fault of ours.
const SENT: &str = "SELECT id, webhook, record ->> 'inputs', record ->> 'caller', caller FROM decisions
    WHERE (decision IN ('allow', 'deny') OR code IN ('provider_unavailable', 'internal')) AND record ->> 'caller' IS NOT NULL ORDER BY rowid DESC";

/// Most rows of one execution; a power of two, and the most that a batch has.
const MOST_ROWS: usize = 512;

static INSERT: LazyLock<Vec<String>> = LazyLock::new(|| {
    statements(7, |values, _| {
        format!("INSERT OR IGNORE INTO decisions (id, device, webhook, decision, code, record, caller) VALUES {values}")
    })
});

const DELETE_BEFORE: &str = "DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE id < ? ORDER BY id LIMIT ?)";

const DELETE_FIRST: &str = "DELETE FROM decisions WHERE rowid IN (SELECT rowid FROM decisions ORDER BY rowid LIMIT ?)";

const RULINGS: &str = "SELECT id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected FROM rulings
    WHERE until IS NULL OR until + max(0, ? - corrected) > ? ORDER BY id";

/// The ruling may be there already, from a write that took too long.
const KEEP: &str =
    "INSERT OR IGNORE INTO rulings (id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

static COVER: LazyLock<Vec<String>> = LazyLock::new(|| {
    statements(2, |values, _| {
        format!("INSERT OR IGNORE INTO covers (ruling, mark) SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL")
    })
});

/// A lock that was taken back meanwhile gets no covers.
static COVER_IF_LOCKED: LazyLock<Vec<String>> = LazyLock::new(|| {
    statements(2, |values, _| {
        format!("INSERT OR IGNORE INTO covers (ruling, mark) SELECT * FROM (VALUES {values}) WHERE column1 IN (SELECT id FROM rulings)")
    })
});

/// A pair that is seen again becomes the newest row.
static LINK: LazyLock<Vec<String>> = LazyLock::new(|| {
    statements(2, |values, _| format!("INSERT OR REPLACE INTO links (a, b) SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL"))
});

const PARTNERS: &str = "SELECT seen, b FROM links WHERE a = ?";

const DELETE_LINKS: &str = "DELETE FROM links WHERE seen IN (SELECT seen FROM links ORDER BY seen LIMIT ?)";

/// The rule for a key that is allowed again: it is known for the device of the last allow, unless that was proven less well than
/// the known device. So the holder of an attested device's key cannot make it that of another device by a mere claim. For the
/// same device the best proof counts. A binding beyond the retention counts for nothing; that it is beyond needs a proven time.
static ALLOW: LazyLock<Vec<String>> = LazyLock::new(|| {
    statements(KEY_COLUMNS, |values, rows| {
        let retention = rows * KEY_COLUMNS + 1;
        let proven = rows * KEY_COLUMNS + 2;
        format!(
            "INSERT INTO keys (sha256, kind, identifier, device, trust, allowed_at)
    SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL
    ON CONFLICT (sha256) DO UPDATE SET
        kind = excluded.kind, identifier = excluded.identifier, device = excluded.device, allowed_at = excluded.allowed_at,
        trust = iif(
            (keys.kind, keys.device) = (excluded.kind, excluded.device) AND keys.allowed_at >= min(excluded.allowed_at, ?{proven}) - ?{retention},
            max(keys.trust, excluded.trust), excluded.trust
        )
    WHERE (keys.kind, keys.device) = (excluded.kind, excluded.device)
        OR excluded.trust >= keys.trust OR keys.allowed_at < min(excluded.allowed_at, ?{proven}) - ?{retention}"
        )
    })
});

const KEY_COLUMNS: usize = 6;

const DEVICE_OF: &str = "SELECT kind, identifier, trust FROM keys WHERE sha256 = ? AND allowed_at >= ?";

const DELETE_KEYS: &str = "DELETE FROM keys WHERE rowid IN (SELECT rowid FROM keys WHERE allowed_at < ? ORDER BY allowed_at LIMIT ?)";
