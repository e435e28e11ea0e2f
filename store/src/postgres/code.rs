//! SQLSTATE, and what it means for a store (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use sqlx::Error;
use sqlx::error::DatabaseError;

use crate::error::StoreError;

/// The store's error for an error of a statement.
pub(super) fn fault(error: Error) -> StoreError {
    match &*state(&error) {
        DISK_FULL => StoreError::Full,
        READ_ONLY => StoreError::Standby,
        CANCELLED | LOCK_NOT_THERE => StoreError::Slow,
        denied if denied.starts_with("28") || denied == NO_PRIVILEGE => StoreError::Denied(error),
        _ if ends(&error) => StoreError::Broken(error),
        _ => StoreError::Failed(error),
    }
}

/// Returns whether a connection is of no use after this error: it broke, the server ends, or it only reads from now on.
pub(super) fn ends(error: &Error) -> bool {
    match error {
        Error::Database(_) => {
            let state = state(error);
            // Class 08 is that of connections, and 57P that of an operator who ends the server or the connection.
            state.starts_with("08") || state.starts_with("57P") || [READ_ONLY, IDLE].contains(&&*state)
        }
        Error::RowNotFound | Error::ColumnDecode { .. } | Error::Decode(_) | Error::Encode(_) => false,
        _ => true,
    }
}

/// The SQLSTATE of an error; empty where it has none.
pub(super) fn state(error: &Error) -> String {
    error.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned()
}

const READ_ONLY: &str = "25006";
const IDLE: &str = "25P03";
const NO_PRIVILEGE: &str = "42501";
const DISK_FULL: &str = "53100";
const LOCK_NOT_THERE: &str = "55P03";
const CANCELLED: &str = "57014";
pub(super) const NO_TABLE: &str = "42P01";
pub(super) const NO_COLUMN: &str = "42703";
