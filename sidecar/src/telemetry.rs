//! Logs: text on a terminal, JSON otherwise, written by a thread of their own.
//!
//! A thread that logs only appends to a buffer, so that neither a slow reader nor a system call a line holds a decision up.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::config::Log;
use engine::metrics::Metrics;
use posture::shown;

/// Lines on their way to standard output. Dropping them writes what is left, as far as somebody reads it.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
    /// Closed once the last line is written.
    written: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    waiting: bool,
    closed: bool,
}

/// Sets up logging for the process.
///
/// # Errors
/// Where the level is not a filter, or logging was set up before.
pub fn start(log: &Log, metrics: Arc<Metrics>) -> anyhow::Result<Lines> {
    let filter = EnvFilter::try_new(of_all_crates(&log.level)).with_context(|| format!("read the log level `{}`", log.level))?;
    #[expect(clippy::disallowed_methods, reason = "texts are escaped as they are put into a line")]
    let (json, lines) = (log.json.unwrap_or_else(|| !io::stdout().is_terminal()), Lines::new(metrics, io::stdout())?);
    let writer = Append(Arc::clone(&lines.shared));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let text = debug_fn(|writer, field, value| field_of_text(writer, field.name(), value)).delimited(" ");
    if json { builder.event_format(JsonLine).try_init() } else { builder.fmt_fields(text).try_init() }
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(lines)
}

/// Returns a filter in which a directive for `sidecar` counts for every crate of the service, unless the filter names that crate.
fn of_all_crates(level: &str) -> String {
    let said = level.split(',').filter_map(|directive| directive.trim().strip_prefix("sidecar"));
    let said = said.filter(|rest| rest.is_empty() || rest.starts_with(['=', '[']));
    let others = said.flat_map(|rest| CRATES.iter().map(move |name| format!("{name}{rest}")));
    // The last directive about a crate counts.
    others.chain([level.to_owned()]).collect::<Vec<_>>().join(",")
}

/// Crates of the service besides `sidecar` that log.
const CRATES: &[&str] = &["engine", "inventory", "store"];

/// Writes a field of a line for people; the message has no name before it.
fn field_of_text(writer: &mut Writer<'_>, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    match name {
        "message" => write!(writer, "{}", shown::cell(&value)),
        name => write!(writer, "{name}={}", shown::cell(&value)),
    }
}

impl Lines {
    fn new(metrics: Arc<Metrics>, mut output: impl Write + Send + 'static) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { buffer: Mutex::default(), filled: Condvar::new(), metrics });
        let reader = Arc::clone(&shared);
        let (writing, written) = mpsc::channel();
        let writer = move || {
            let _writing = writing;
            reader.drain(&mut output);
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(writer).context("start a thread")?;
        Ok(Self { shared, written })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.buffer.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.filled.notify_one();
        // Nothing is ever sent: the wait ends with the writer, or without it where a pipe is full and nobody reads it.
        let _ = self.written.recv_timeout(LAST);
    }
}

impl Shared {
    fn append(&self, line: &[u8]) {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.bytes.len().saturating_add(line.len()) > CAPACITY {
            self.metrics.log_lines_dropped.inc();
            return;
        }
        buffer.bytes.extend_from_slice(line);
        if std::mem::take(&mut buffer.waiting) {
            drop(buffer);
            self.filled.notify_one();
        }
    }

    fn drain(&self, output: &mut impl Write) {
        let mut taken = Vec::new();
        loop {
            let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
            while buffer.bytes.is_empty() {
                if buffer.closed {
                    return;
                }
                buffer.waiting = true;
                buffer = self.filled.wait(buffer).unwrap_or_else(PoisonError::into_inner);
            }
            // Under load a wake-up and a write for every line would cost a third of what a decision does.
            (buffer, _) = self.filled.wait_timeout_while(buffer, LINGER, |buffer| !buffer.closed).unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut buffer.bytes, &mut taken);
            drop(buffer);
            // A failure to write to standard output cannot be told to anybody.
            let _ = output.write_all(&taken).and_then(|()| output.flush());
            taken.clear();
        }
    }
}

struct Append(Arc<Shared>);

struct Line<'l>(&'l Shared);

impl<'l> MakeWriter<'l> for Append {
    type Writer = Line<'l>;

    fn make_writer(&'l self) -> Line<'l> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    /// Appends a line: the formatter writes a whole one at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Format of log lines, a JSON object for each event: its time, its level, its fields, where it is from. The same as the JSON of
/// `tracing-subscriber` with flattened events, which goes through a serializer for every field.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // An event of the crate `log` has its metadata in its fields.
        let own = event.normalized_metadata();
        let metadata = own.as_ref().unwrap_or_else(|| event.metadata());
        line.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut line)?;
        line.write_str("\",\"level\":\"")?;
        line.write_str(metadata.level().as_str())?;
        line.write_char('"')?;
        let mut fields = Fields { line: &mut line, from_log: own.is_some(), result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        line.write_str(",\"target\":\"")?;
        Escaped(&mut line).write_str(metadata.target())?;
        line.write_str("\"}\n")
    }
}

/// Writes each field behind a comma.
struct Fields<'l, 'w> {
    line: &'l mut Writer<'w>,
    from_log: bool,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        // The fields `log.…` of an event of the crate `log` are its metadata already.
        if self.from_log && field.name().starts_with("log.") {
            return;
        }
        let write = || {
            self.line.write_str(",\"")?;
            Escaped(self.line).write_str(field.name())?;
            self.line.write_str("\":")?;
            value(self.line)
        };
        self.result = self.result.and_then(|()| write());
    }

    fn text(&mut self, field: &Field, text: impl FnOnce(&mut Escaped<'_, '_>) -> fmt::Result) {
        self.field(field, |line| {
            line.write_char('"')?;
            text(&mut Escaped(line))?;
            line.write_char('"')
        });
    }
}

impl Visit for Fields<'_, '_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither infinity nor NaN.
        self.field(field, |line| if value.is_finite() { write!(line, "{value}") } else { line.write_str("null") });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| line.write_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, |text| text.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, |text| write!(text, "{value:?}"));
    }
}

/// Writes text as the inside of a JSON string.
struct Escaped<'l, 'w>(&'l mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let special = |letter| matches!(letter, '"' | '\\') || shown::is_hidden(letter);
        for part in text.split_inclusive(special) {
            let plain = part.strip_suffix(special).unwrap_or(part);
            self.0.write_str(plain)?;
            match part.chars().next_back().filter(|letter| special(*letter)) {
                None => {}
                Some('\n') => self.0.write_str("\\n")?,
                Some(letter @ ('"' | '\\')) => write!(self.0, "\\{letter}")?,
                Some(hidden) => shown::escape(hidden, self.0)?,
            }
        }
        Ok(())
    }
}

/// Largest number of bytes that wait to be written; what comes on top is dropped and counted.
const CAPACITY: usize = 8 << 20;

/// Time that a line waits for others to be written with.
const LINGER: Duration = Duration::from_millis(20);

/// Longest time that the end of the process waits for what is left to be written.
const LAST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_filter_says_of_the_sidecar_counts_for_all_of_its_crates() {
        for (level, filter) in [
            ("info,sidecar=debug", "engine=debug,inventory=debug,store=debug,info,sidecar=debug"),
            ("sidecar", "engine,inventory,store,sidecar"),
            ("info, sidecar=debug,inventory=warn", "engine=debug,inventory=debug,store=debug,info, sidecar=debug,inventory=warn"),
            ("info,sidecar::store=debug,sidecars=trace", "info,sidecar::store=debug,sidecars=trace"),
        ] {
            assert_eq!(of_all_crates(level), filter);
        }
    }

    #[test]
    fn c5_a_line_for_people_has_nothing_that_a_terminal_would_act_upon() {
        let mut line = String::new();
        let mut writer = Writer::new(&mut line);
        field_of_text(&mut writer, "message", &format_args!("asked for \u{202e}SERIAL")).unwrap();
        field_of_text(&mut writer, "device", &format_args!(" \u{1b}[2J\n")).unwrap();
        assert_eq!(line, "asked for \\u202eSERIALdevice= \\u001b[2J\\u000a");
    }

    /// Returns what is logged while `events` runs, each line read as JSON, without the times.
    fn logged(events: impl FnOnce()) -> Vec<Value> {
        let (sender, receiver) = mpsc::sync_channel(10);
        let lines = Lines::new(Arc::default(), Pipe(sender)).unwrap();
        let subscriber = tracing_subscriber::fmt().event_format(JsonLine).with_writer(Append(Arc::clone(&lines.shared))).finish();
        tracing::subscriber::with_default(subscriber, events);
        drop(lines);
        let text = String::from_utf8(receiver.iter().collect::<Vec<_>>().concat()).unwrap();
        let read = |line: &str| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            let time = event.as_object_mut().unwrap().remove("timestamp").unwrap();
            assert!(posture::time::UnixTime::parse(time.as_str().unwrap()).is_some(), "{time}");
            event
        };
        text.lines().map(read).collect()
    }

    #[test]
    fn an_event_is_a_line_of_json() {
        let events = logged(|| {
            tracing::info!(
                target: "a::target",
                text = "a \"b\" \\ \u{1}é",
                none = None::<&str>,
                some = Some(7_u64),
                negative = -7,
                half = 0.5,
                no_number = f64::NAN,
                flag = true,
                shown = %"c\td",
                inner = ?Some("e"),
                "said {}\nthis", 1
            );
            tracing::warn!(error = &io::Error::other("f") as &dyn std::error::Error);
        });
        let first = json!({
            "level": "INFO", "target": "a::target", "message": "said 1\nthis", "text": "a \"b\" \\ \u{1}é", "some": 7, "negative": -7,
            "half": 0.5, "no_number": null, "flag": true, "shown": "c\td", "inner": "Some(\"e\")",
        });
        assert_eq!(events, [first, json!({ "level": "WARN", "target": module_path!(), "error": "f" })]);
    }

    proptest! {
        #[test]
        fn whatever_a_stranger_sends_stays_within_its_field(text: String, shown: String) {
            let events = logged(|| tracing::info!(text = text.as_str(), %shown, "one"));
            let wanted = json!({ "level": "INFO", "target": module_path!(), "message": "one", "text": text, "shown": shown });
            prop_assert_eq!(events, [wanted]);
        }
    }

    /// A pipe that holds as much as its channel does.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_left_is_written_at_the_end() {
        let (sender, receiver) = mpsc::sync_channel(10);
        let lines = Lines::new(Arc::default(), Pipe(sender)).unwrap();
        lines.shared.append(b"one\n");
        lines.shared.append(b"two\n");
        drop(lines);
        assert_eq!(receiver.iter().collect::<Vec<_>>().concat(), b"one\ntwo\n");
    }

    #[test]
    fn a_reader_that_reads_nothing_does_not_hold_up_the_end_and_lines_are_counted() {
        let (sender, _receiver) = mpsc::sync_channel(0);
        let metrics = Arc::new(Metrics::default());
        let lines = Lines::new(Arc::clone(&metrics), Pipe(sender)).unwrap();
        let line = [b'a'; 1 << 20];
        for _ in 0..20 {
            lines.shared.append(&line);
        }
        assert!(metrics.log_lines_dropped.get() >= 20 - 2 * 8, "{}", metrics.log_lines_dropped.get());
        drop(lines);
    }
}
