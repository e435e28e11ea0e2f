//! Waiting for events: always with a deadline, never for a fixed time.

use std::time::{Duration, Instant};

/// Longest time that the slowest start-up may take on a busy machine.
pub const STARTUP: Duration = Duration::from_secs(60);

/// Calls `ask` again and again until it returns `Some`.
///
/// # Panics
/// Panics if it does not within the time given; `what` says what was awaited.
pub async fn until<T>(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
