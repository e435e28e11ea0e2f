//! The tables that a start needs, as both databases have them: what copies a store and compares two goes by this list.

use sha2::{Digest as _, Sha256};

/// A table, whose rows have one order in both databases.
#[derive(Debug)]
pub(crate) struct Table {
    /// The name in both databases, and for people.
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [Column],
    /// Columns that order the rows in SQLite, by an index; `None` where a file has no such table.
    pub(crate) sqlite_order: Option<&'static [Column]>,
    /// The rows in SQLite that mean something; empty where all do.
    pub(crate) sqlite_filter: &'static str,
    /// Columns that order the rows in PostgreSQL, by an index.
    pub(crate) postgres_order: &'static [Column],
    /// Whether a store in which a service has only been started has rows here.
    pub(crate) of_a_start: bool,
}

/// A column of a table.
#[derive(Debug)]
pub(crate) struct Column {
    /// The name in PostgreSQL.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The name in SQLite; `None` where only the record of the decision has it.
    pub(crate) sqlite: Option<&'static str>,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Integer,
    Text,
    Bytes,
}

/// A value of a column, or null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The values of the columns that order the table. Another database may have others.
    pub(crate) place: Vec<Value>,
    /// The values of [`Table::columns`].
    pub(crate) values: Vec<Value>,
}

/// The number of the rows of a table, and a digest over them in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    rows: u64,
    digest: Sha256,
}

impl Sum {
    /// Adds the next row.
    pub(crate) fn add(&mut self, row: &Row) {
        self.rows += 1;
        for value in &row.values {
            let (kind, bytes) = match value {
                Value::Integer(number) => (b'i', number.map(|number| number.to_be_bytes().to_vec())),
                Value::Text(text) => (b't', text.as_ref().map(|text| text.as_bytes().to_vec())),
                Value::Bytes(bytes) => (b'b', bytes.clone()),
            };
            // With its length before it no value runs into the next one; null has none.
            let length = bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64);
            self.digest.update([kind]);
            self.digest.update(length.to_be_bytes());
            self.digest.update(bytes.unwrap_or_default());
        }
    }

    /// Number of the rows.
    pub(crate) const fn rows(&self) -> u64 {
        self.rows
    }

    /// SHA-256 over all values of all rows.
    pub(crate) fn digest(self) -> [u8; 32] {
        self.digest.finalize().into()
    }
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, sqlite: Some(name) }
}

const fn integer(name: &'static str) -> Column {
    column(name, Kind::Integer)
}

const fn text(name: &'static str) -> Column {
    column(name, Kind::Text)
}

/// A table that both databases have, with the same columns.
const fn alike(name: &'static str, columns: &'static [Column], order: &'static [Column]) -> Table {
    Table { name, columns, sqlite_order: Some(order), sqlite_filter: "", postgres_order: order, of_a_start: false }
}

/// The tables, each behind those that its rows refer to.
pub(crate) const TABLES: &[Table] = &[
    alike(
        "rulings",
        &[
            text("id"),
            text("kind"),
            text("identifier_kind"),
            text("device"),
            text("reason"),
            text("made_by"),
            integer("made_at"),
            integer("until"),
            integer("proven_until"),
            integer("corrected"),
        ],
        &[text("id")],
    ),
    Table {
        sqlite_filter: "ruling IN (SELECT id FROM rulings)",
        ..alike("covers", &[text("ruling"), integer("mark")], &[text("ruling"), integer("mark")])
    },
    // One thread writes a file, so no late write can bring a ruling back there.
    Table { sqlite_order: None, ..alike("forgotten", &[text("id")], &[text("id")]) },
    Table {
        sqlite_order: Some(&[integer("rowid")]),
        ..alike(
            "decisions",
            &[
                text("id"),
                text("device"),
                text("webhook"),
                text("decision"),
                text("code"),
                Column { name: "caller_digest", kind: Kind::Bytes, sqlite: Some("caller") },
                text(RECORD),
                // Whoever reads a file takes these two out of the record, which comes before them.
                Column { name: INPUTS, kind: Kind::Text, sqlite: None },
                Column { name: "caller", kind: Kind::Text, sqlite: None },
            ],
            &[integer("seq")],
        )
    },
    alike(
        "keys",
        &[column("sha256", Kind::Bytes), text("kind"), text("identifier"), text("device"), integer("trust"), integer("allowed_at")],
        &[column("sha256", Kind::Bytes)],
    ),
    alike("links", &[integer("seen"), integer("a"), integer("b")], &[integer("seen")]),
    Table { of_a_start: true, ..alike("clock", &[integer("proven"), integer("corrected")], &[integer("proven")]) },
];

/// The column with the record of a decision, and the one with the digest of what was decided about, which the record has too.
pub(crate) const RECORD: &str = "record";
pub(crate) const INPUTS: &str = "inputs";

/// Most rows that are in memory at once: of the longest records some 40 MB.
pub(crate) const PAGE: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_differ_in_one_value_its_kind_or_their_order_have_another_digest() {
        let text = |text: &str| Value::Text(Some(text.to_owned()));
        let digest = |rows: &[Vec<Value>]| {
            let mut sum = Sum::default();
            rows.iter().for_each(|values| sum.add(&Row { place: Vec::new(), values: values.clone() }));
            (sum.rows(), sum.digest())
        };
        let all = [
            vec![],
            vec![vec![text("ab"), text("c")]],
            vec![vec![text("a"), text("bc")]],
            vec![vec![text("ab")], vec![text("c")]],
            vec![vec![text("c")], vec![text("ab")]],
            vec![vec![text("ab"), Value::Bytes(Some(b"c".to_vec()))]],
            vec![vec![text("ab"), Value::Text(None)]],
            vec![vec![text("ab"), text("")]],
            vec![vec![Value::Integer(Some(0)), Value::Integer(None)]],
            vec![vec![Value::Integer(None), Value::Integer(Some(0))]],
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(|rows| digest(rows)).collect();
        assert_eq!(digests.len(), all.len());
        assert_eq!(digest(&all[1]), digest(&all[1].clone()));
    }
}
