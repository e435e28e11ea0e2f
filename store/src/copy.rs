//! Copying a store, row by row, from either database to either.

use crate::place::{Place, PlaceError};
use crate::table::{Row, Sum, TABLES, Table, Value};
use crate::{postgres, sqlite};

/// The reason why a store was not copied. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The store that is copied cannot be used.
    #[error("read the store")]
    From(#[source] PlaceError),
    /// The new store cannot be made.
    #[error("write the copy")]
    To(#[source] PlaceError),
    /// The copy has other rows than the store.
    #[error("the copy is not kept, since it is not the same: {table} has {copied} rows, and the copy {found}{}", if copied == found { " that differ" } else { "" })]
    Differs {
        /// The table.
        table: &'static str,
        /// Number of rows that were read of the store.
        copied: u64,
        /// Number of rows that were found in the copy.
        found: u64,
    },
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whether the rows are read once more, in the copy.
    pub comparing: bool,
    /// The table.
    pub table: &'static str,
    /// Number of its rows that are done.
    pub done: u64,
    /// Number of its rows.
    pub of: u64,
}

/// A table that was copied, and found to be the same in the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The table.
    pub table: &'static str,
    /// Number of its rows.
    pub rows: u64,
    /// SHA-256 over all of them, in their order.
    pub digest: [u8; 32],
}

/// Copies the store at one place to another, where there is none, or none with rows. What was written is read once more and
/// compared before it is kept; whatever ends the copy before, the target is as it was. No service may use either meanwhile.
///
/// # Errors
/// [`CopyError`].
pub async fn copy(from: &Place, to: &Place, said: &mut (dyn FnMut(Progress) + Send)) -> Result<Vec<Copied>, CopyError> {
    let mut source = Source::open(from).await.map_err(CopyError::From)?;
    let mut target = Target::make(to, source.store()).await.map_err(CopyError::To)?;
    let mut sums = Vec::new();
    for table in TABLES {
        if !source.has(table) || !target.has(table) {
            continue;
        }
        let of = source.count(table).await.map_err(CopyError::From)?;
        let (mut sum, mut after) = (Sum::default(), None);
        loop {
            said(Progress { comparing: false, table: table.name, done: sum.rows(), of });
            let rows = source.page(table, after.as_deref()).await.map_err(CopyError::From)?;
            if rows.is_empty() {
                break;
            }
            target.write(table, &rows).await.map_err(CopyError::To)?;
            after = add(&mut sum, rows);
        }
        sums.push((table, sum.rows(), sum.digest()));
    }
    source.is_unused().await.map_err(CopyError::From)?;
    let mut target = target.written().await.map_err(CopyError::To)?;
    let mut copied = Vec::new();
    for (table, rows, digest) in sums {
        let (mut sum, mut after) = (Sum::default(), None);
        loop {
            said(Progress { comparing: true, table: table.name, done: sum.rows(), of: rows });
            let found = target.page(table, after.as_deref()).await.map_err(CopyError::To)?;
            if found.is_empty() {
                break;
            }
            after = add(&mut sum, found);
        }
        let found = sum.rows();
        if (found, sum.digest()) != (rows, digest) {
            return Err(CopyError::Differs { table: table.name, copied: rows, found });
        }
        copied.push(Copied { table: table.name, rows, digest });
    }
    target.keep().await.map_err(CopyError::To)?;
    Ok(copied)
}

/// Adds rows to a sum; returns the place of the last one.
fn add(sum: &mut Sum, rows: Vec<Row>) -> Option<Vec<Value>> {
    rows.iter().for_each(|row| sum.add(row));
    rows.into_iter().last().map(|last| last.place)
}

/// The store that is copied.
enum Source {
    File(Box<sqlite::copy::Reader>),
    Server(Box<postgres::copy::Reader>),
}

impl Source {
    async fn open(place: &Place) -> Result<Self, PlaceError> {
        Ok(match place {
            Place::File(path) => Self::File(Box::new(sqlite::copy::Reader::open(path).await?)),
            Place::Server(server) => Self::Server(Box::new(postgres::copy::Reader::open(server).await?)),
        })
    }

    /// Id of a store on a server.
    fn store(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Server(reader) => Some(reader.store()),
        }
    }

    const fn has(&self, table: &Table) -> bool {
        matches!(self, Self::Server(_)) || table.sqlite_order.is_some()
    }

    async fn count(&mut self, table: &Table) -> Result<u64, PlaceError> {
        Ok(match self {
            Self::File(reader) => reader.count(table).await?,
            Self::Server(reader) => reader.count(table).await?,
        })
    }

    async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, PlaceError> {
        Ok(match self {
            Self::File(reader) => reader.page(table, after).await?,
            Self::Server(reader) => reader.page(table, after).await?,
        })
    }

    /// Checks that no service has come meanwhile. None can have begun to use a file, since its lock is held.
    async fn is_unused(&mut self) -> Result<(), PlaceError> {
        match self {
            Self::File(_) => {}
            Self::Server(reader) => reader.is_unused().await?,
        }
        Ok(())
    }
}

/// The copy while it is written.
enum Target {
    File(Box<sqlite::copy::Writer>),
    Server(Box<postgres::copy::Writer>),
}

impl Target {
    async fn make(place: &Place, source: Option<&str>) -> Result<Self, PlaceError> {
        Ok(match place {
            Place::File(path) => Self::File(Box::new(sqlite::copy::Writer::make(path).await?)),
            Place::Server(server) => Self::Server(Box::new(postgres::copy::Writer::make(server, source).await?)),
        })
    }

    const fn has(&self, table: &Table) -> bool {
        matches!(self, Self::Server(_)) || table.sqlite_order.is_some()
    }

    async fn write(&mut self, table: &Table, rows: &[Row]) -> Result<(), PlaceError> {
        match self {
            Self::File(writer) => writer.write(table, rows).await?,
            Self::Server(writer) => writer.write(table, rows).await?,
        }
        Ok(())
    }

    async fn written(self) -> Result<Written, PlaceError> {
        Ok(match self {
            Self::File(writer) => Written::File(Box::new(writer.written().await?)),
            Self::Server(writer) => Written::Server(writer),
        })
    }
}

/// The copy once it is written, before it is kept.
enum Written {
    File(Box<sqlite::copy::Written>),
    Server(Box<postgres::copy::Writer>),
}

impl Written {
    async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, PlaceError> {
        Ok(match self {
            Self::File(written) => written.page(table, after).await?,
            Self::Server(writer) => writer.page(table, after).await?,
        })
    }

    async fn keep(self) -> Result<(), PlaceError> {
        match self {
            Self::File(written) => written.keep().await?,
            Self::Server(writer) => writer.keep().await?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
