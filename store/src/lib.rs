//! State that outlives the process: rulings of operators, and the record of decisions. It is kept in one SQLite file or in a
//! PostgreSQL database, made and migrated at the start.

mod claim;
mod columns;
#[cfg(test)]
mod contract;
mod copy;
mod database;
mod date;
mod decision;
mod error;
#[cfg(test)]
mod fixture;
mod id;
mod identifier;
mod learned;
mod lists;
mod losses;
mod mark;
mod newest;
mod news;
mod notices;
mod overview;
mod owed;
mod place;
mod postgres;
mod ruling;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod sent;
mod settings;
mod sharing;
mod sqlite;
mod store;
mod table;
mod writer;

pub use self::settings::{KEY_RETENTION, MAX_DECISIONS, MAX_KEYS, MAX_KEYS_PER_DEVICE, RETENTION, Settings};
pub use claim::{Claim, Claimed};
pub use copy::{Copied, CopyError, Progress, copy};
pub use database::OpenError;
pub use date::rfc3339;
pub use decision::{Answer, Decision, Device, LONGEST_CHECKS, Summary, Wanted};
pub use error::{RECIPE, StoreError};
pub use id::{DecisionId, NoId};
pub use identifier::{key, plain, same};
pub use lists::{Begun, Ended};
pub use losses::Dropped;
pub use mark::{FIRST_COVERED, MOST_COVERED, Mark};
pub use news::{Changes, Heard, News, Rulings, Told};
pub use notices::{About, Notice, Noticed, Notices};
pub use overview::{Contents, Migrated, Overview};
pub use place::{Place, PlaceError};
pub use postgres::{OpenError as ServerError, Server, UrlError, WholeError as ServerFault};
pub use ruling::{Ruling, RulingKind};
pub use sent::{Sender, Sent};
pub use sharing::{STALE_LIMIT, Sharing};
pub use sqlite::{BackupError, OpenError as FileError, WholeError as FileFault, back_up, examine};
pub use store::Store;
