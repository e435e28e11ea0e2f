//! Where a store is, and what can be done with it from outside of a service.

use std::fmt;
use std::path::PathBuf;

use crate::overview::{Migrated, Overview};
use crate::postgres::{self, Server};
use crate::settings::Settings;
use crate::sqlite;

/// The place of a store. Prints as the path or the URL, which has no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL server.
    Server(Box<Server>),
}

/// The reason why the store at a place cannot be looked at, brought up to date, or copied.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] sqlite::WholeError),
    /// The server cannot be used.
    #[error(transparent)]
    Server(#[from] postgres::WholeError),
}

impl PlaceError {
    /// Returns whether no server answered, so that it may be tried again later.
    pub const fn is_away(&self) -> bool {
        use crate::error::StoreError::{Away, Broken, Slow};
        use postgres::{OpenError::Failed, WholeError::Open};
        matches!(self, Self::Server(Open(Failed { source: Away(_) | Broken(_) | Slow, .. })))
    }
}

impl Place {
    /// The place of a service's store; `None` where it has none.
    pub fn of(settings: &Settings) -> Option<Self> {
        let server = settings.server.clone().map(|server| Self::Server(Box::new(server)));
        server.or_else(|| settings.path.clone().map(Self::File))
    }

    /// The kind of the database, for people and programs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "sqlite",
            Self::Server(_) => "postgresql",
        }
    }

    /// What is there, while services may use it; `None` where there is no store. Nothing is changed.
    ///
    /// # Errors
    /// [`PlaceError`]: there is something else, a store of a later release, or it cannot be read.
    pub async fn overview(&self) -> Result<Option<Overview>, PlaceError> {
        Ok(match self {
            Self::File(path) => sqlite::copy::overview(path).await?,
            Self::Server(server) => postgres::copy::overview(server).await?,
        })
    }

    /// Brings the store to the schema of this release. A file has to be there, and no service may use it. On a server the tables
    /// are made where there are none, as by the first service that starts; services of an earlier release go on meanwhile.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn migrate(&self) -> Result<Migrated, PlaceError> {
        Ok(match self {
            Self::File(path) => sqlite::copy::migrate(path).await?,
            Self::Server(server) => postgres::copy::migrate(server).await?,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Server(server) => write!(f, "{server}"),
        }
    }
}
