//! Helpers for all gRPC services: how long a call may take, and the end of the service.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Request;

/// Returns the moment at which the caller gives up (`grpc-timeout`), and [`LONGEST`] from now at the latest.
pub(crate) fn deadline<T>(request: &Request<T>) -> Instant {
    let asked = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
    Instant::now() + asked.unwrap_or(LONGEST).min(LONGEST)
}

/// Parses `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Resolves once `drain` is true.
pub(crate) async fn drained(mut drain: watch::Receiver<bool>) {
    // The sender lives as long as the process; if it were gone, ending is right as well.
    let _ = drain.wait_for(|draining| *draining).await;
}

/// Longest time that a caller waits for an answer.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_time_that_a_caller_has() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("3H", Some(Duration::from_secs(10_800))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("", None),
            ("S", None),
            ("1", None),
            ("123456789S", None),
            ("-1S", None),
            ("1.5S", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }
}
