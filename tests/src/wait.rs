//! Waiting for events: always with a deadline, never for a fixed time.

use std::time::{Duration, Instant};

/// How long the slowest start-up may take on a busy machine.
pub const STARTUP: Duration = Duration::from_secs(60);

/// Asks again and again until the answer is `Some`.
///
/// # Panics
/// Where it is not within the time given; `what` says what was awaited.
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
