//! Output of commands: the forms of a result, and the standard streams, made safe for a terminal.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use posture::shown::{self, Shown};
use serde_json::Value;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The format of a command that prints a result.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// How to print the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Returns the standard output, with control characters and the like in a form that a terminal does not act upon.
pub(super) fn out() -> Shown<Noticed<io::StdoutLock<'static>>> {
    #[expect(clippy::disallowed_methods, reason = "this is where it is made safe")]
    Shown(Noticed(io::stdout().lock()))
}

/// A writer that notices when nobody reads what it writes any more.
pub(super) struct Noticed<W>(W);

impl<W: io::Write> io::Write for Noticed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        noticed(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        noticed(self.0.flush())
    }
}

fn noticed<T>(result: io::Result<T>) -> io::Result<T> {
    if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        CLOSED.store(true, Ordering::Relaxed);
    }
    result
}

/// Returns whether a reader of the standard output or error has gone, as `head` has after ten lines.
pub(super) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Flag that [`is_closed`] returns.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Resolves once nobody reads the standard output any more: for commands that go on without an end and may have nothing to write.
pub(super) async fn unread() {
    loop {
        tokio::time::sleep(LOOK).await;
        #[expect(clippy::disallowed_methods, reason = "nothing is written")]
        let stdout = io::stdout();
        let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        let is_gone = |polled: &PollFd<'_>| polled.revents().is_some_and(|events| events.intersects(gone));
        // A file never counts as closed; where the system cannot say, the next write finds out.
        if poll(&mut polled, PollTimeout::ZERO).is_ok() && polled.iter().any(is_gone) {
            CLOSED.store(true, Ordering::Relaxed);
            return;
        }
    }
}

/// Time between two looks whether somebody reads.
const LOOK: Duration = Duration::from_millis(500);

/// Returns the standard error, made safe for a terminal as [`out`] is.
pub(super) fn err() -> Shown<Noticed<io::StderrLock<'static>>> {
    #[expect(clippy::disallowed_methods, reason = "this is where it is made safe")]
    Shown(Noticed(io::stderr().lock()))
}

/// Prints a result: JSON on one line, or rows of a name and a value in two columns, those that `first` names before the rest.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn print(output: OutputArgs, value: &Value, first: &[&str]) -> anyhow::Result<()> {
    let mut out = out();
    match (output.output, value) {
        (Format::Table, Value::Object(fields)) => {
            let width = fields.keys().map(String::len).max().unwrap_or_default();
            let place = |name: &str| first.iter().position(|first| *first == name).unwrap_or(first.len());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| place(name));
            for (name, value) in fields {
                match value {
                    Value::String(text) => writeln!(out, "{name:width$}  {}", shown::cell(text))?,
                    Value::Null => {}
                    value => writeln!(out, "{name:width$}  {value}")?,
                }
            }
        }
        (_, value) => writeln!(out, "{value}")?,
    }
    Ok(())
}

/// Prints rows of a name and a text in two columns, in this order. Further lines of a text stand below its first.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn rows(rows: &[(String, String)]) -> io::Result<()> {
    let mut out = out();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    rows.iter().try_for_each(|(name, text)| writeln!(out, "{name:width$}  {}", below(text, width + 2)))
}

/// Returns a text of several lines, so that it stands in a column that begins at `column`.
pub(super) fn below(text: &str, column: usize) -> String {
    text.lines().map(shown::cell).collect::<Vec<_>>().join(&format!("\n{:column$}", ""))
}

/// Prints objects as a table: a line with the names of the columns, then one for each object.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn table(rows: &[Value], columns: &[&str]) -> anyhow::Result<()> {
    let cell = |row: &Value, column: &str| match row.get(column) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => shown::cell(text).into_owned(),
        Some(value) => shown::cell(&value.to_string()).into_owned(),
    };
    let head = columns.iter().map(|column| column.to_uppercase()).collect();
    let body = rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|place| lines.iter().filter_map(|line| line.get(place)).map(|text| text.chars().count()).max().unwrap_or_default())
        .collect();
    let mut out = out();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}
