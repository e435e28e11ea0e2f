//! The table of results.

use serde::{Deserialize, Serialize};

/// A row: a budget and the measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Description of what is bounded, and the bound.
    pub(crate) budget: String,
    /// Measured value.
    pub(crate) measured: String,
    /// Whether the value is within the bound; `None` if there is no bound.
    pub(crate) holds: Option<bool>,
}

impl Row {
    /// Makes a row with a bound.
    pub(crate) fn new(budget: impl Into<String>, measured: impl Into<String>, holds: bool) -> Self {
        Self { budget: budget.into(), measured: measured.into(), holds: Some(holds) }
    }

    /// Makes a row without a bound.
    pub(crate) fn figure(what: impl Into<String>, measured: impl Into<String>) -> Self {
        Self { budget: what.into(), measured: measured.into(), holds: None }
    }

    fn verdict(&self) -> &'static str {
        match self.holds {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        }
    }
}

/// Formats the table as Markdown, aligned for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let heads = ["budget", "measured", "holds"].map(str::to_owned);
    let lines: Vec<_> =
        std::iter::once(heads).chain(rows.iter().map(|row| [row.budget.clone(), row.measured.clone(), row.verdict().to_owned()])).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if number == 0 {
            for width in widths {
                text += &format!("|{}", "-".repeat(width + 2));
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let rows = [Row::new("a ≤ 1", "0.5", true), Row::new("b", "2", false), Row::figure("c", "3")];
        assert_eq!(
            table(&rows),
            "| budget | measured | holds |\n|--------|----------|-------|\n| a ≤ 1  | 0.5      | yes   |\n| b      | 2        | NO    |\n| c      | 3        |       |\n"
        );
    }
}
