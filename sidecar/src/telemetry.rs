//! Logs: text on a terminal, JSON otherwise, written by a thread of their own.
//!
//! Whoever logs only appends to a buffer, so that neither a slow reader nor a system call a line holds a decision up.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::Log;
use crate::metrics::Metrics;

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
    let filter = EnvFilter::try_new(&log.level).with_context(|| format!("read the log level `{}`", log.level))?;
    let json = log.json.unwrap_or_else(|| !io::stdout().is_terminal());
    let lines = Lines::new(metrics, io::stdout())?;
    let writer = Append(Arc::clone(&lines.shared));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if json { builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init() } else { builder.try_init() }
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(lines)
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
        // Nothing is ever sent: it ends by the end of the writer, or without it where a pipe is full and nobody reads it.
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
            // Nobody is left to tell when standard output cannot be written to.
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
    /// The formatter writes a whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of log that may wait to be written; what comes on top is dropped and counted.
const CAPACITY: usize = 8 << 20;

/// How long a line waits for others to be written with.
const LINGER: Duration = Duration::from_millis(20);

/// How long the end of the process waits for what is left to be written.
const LAST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

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
