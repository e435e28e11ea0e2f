//! The table of changes of rulings, from which the other services on a store hear of them.

use sqlx::Error;
use sqlx::postgres::PgConnection;

/// What a change was.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Made,
    Forgotten,
    Covers,
}

impl What {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Forgotten => "forgotten",
            Self::Covers => "covers",
        }
    }
}

/// Counts a change of these rulings, and holds up every other change until the transaction ends.
pub(super) async fn count(step: &mut PgConnection, what: What, rulings: &[String]) -> Result<(), Error> {
    let token: i64 = rand::random();
    let (version, _): (i64, String) =
        sqlx::query_as(COUNT).bind(rulings).bind(what.as_str()).bind(token).bind(CHANNEL).fetch_one(&mut *step).await?;
    sqlx::query("delete from stepward.news where version <= $1").bind(version.saturating_sub(KEPT)).execute(step).await.map(drop)
}

/// The channel of notifications.
pub(super) const CHANNEL: &str = "stepward_rulings";

/// Number of changes that are kept for services that hear late; one that is further behind reads all rulings.
const KEPT: i64 = 10_000;

const COUNT: &str = "with next as (update stepward.changes_of_rulings set version = version + 1, token = $3 returning version),
    told as (insert into stepward.news (version, ruling, what, token) select version, id, $2, $3 from next, unnest($1::text[]) as id)
    select version, pg_notify($4, '')::text from next";
