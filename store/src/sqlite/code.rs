//! Codes of SQLite, and their meaning for a store.

use crate::error::StoreError;

/// The store's error for an error of SQLite.
pub(super) fn fault(error: sqlx::Error) -> StoreError {
    match primary_code(&error) {
        Some(FULL) => StoreError::Full,
        Some(READONLY) => StoreError::ReadOnly,
        Some(CORRUPT | NOT_A_DATABASE) => StoreError::Damaged(error),
        _ => StoreError::Failed(error),
    }
}

/// SQLite's primary code of an error (<https://sqlite.org/rescode.html>).
pub(super) fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

pub(super) const READONLY: u32 = 8;
pub(super) const BUSY_CODE: u32 = 5;
pub(super) const IO_ERROR: u32 = 10;
pub(super) const CORRUPT: u32 = 11;
pub(super) const FULL: u32 = 13;
pub(super) const CANNOT_OPEN: u32 = 14;
pub(super) const NOT_A_DATABASE: u32 = 26;
