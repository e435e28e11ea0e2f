//! One memory for all services on one store: who sent a webhook, who decides it, and whether it was denied.
//!
//! The memory of a service is asked first, and the store only about what is new there. An allow is not shared: it rests on what its
//! service knows, and the gate of another one makes its own or none.

use std::borrow::Cow;
use std::time::Duration;

use posture::outcome::Denial;
use posture::shape::Mode;
use serde::{Deserialize, Serialize};
use store::{Claim, Claimed, Store, StoreError};
use tokio::time::Instant;

use crate::gate::Outcome;

/// The word of other services about a webhook that is new to this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// No other service decides the webhook: this one does.
    Nobody,
    /// Another service denied it.
    Denied(Denial),
    /// Another sender sent the same bytes to another service, or to another webhook there.
    Another,
}

/// Claims a webhook among the services on a store. Where another one is deciding it, its outcome is waited for, for `patience` at
/// most; then this one decides too.
///
/// # Errors
/// [`StoreError`]: the others could not be asked, and this service decides.
pub(super) async fn claim(store: &Store, claim: Claim, patience: Duration) -> Result<Elsewhere, StoreError> {
    let claim = Claim { keep: claim.keep.saturating_add(SLACK), ..claim };
    let until = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let claimed = tokio::time::timeout_at(until, store.claim(claim)).await;
        match claimed.unwrap_or(Err(StoreError::Slow))? {
            Claimed::Granted => return Ok(Elsewhere::Nobody),
            Claimed::Another => return Ok(Elsewhere::Another),
            // A text of a release that says it in another way is no denial that could be passed on.
            Claimed::Denied(text) => return Ok(read(&text).map_or(Elsewhere::Nobody, Elsewhere::Denied)),
            Claimed::Running if Instant::now() >= until => return Ok(Elsewhere::Nobody),
            Claimed::Running => tokio::time::sleep(pause).await,
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Tells the other services what came of a claimed webhook.
pub(super) fn tell(store: &Store, body: [u8; 32], outcome: &Outcome) {
    let denial = if let Outcome::Deny(denial) = outcome { written(denial) } else { None };
    match denial {
        Some(denial) => store.denied(body, denial),
        None => store.undecided(body),
    }
}

/// The number of a mode in a claim.
pub(super) const fn number(mode: Option<Mode>) -> i16 {
    match mode {
        None => 0,
        Some(Mode::Computer) => 1,
        Some(Mode::MobileDevice) => 2,
    }
}

/// A denial as the store has it.
#[derive(Serialize, Deserialize)]
struct Kept<'k> {
    #[serde(borrow)]
    code: Cow<'k, str>,
    #[serde(borrow)]
    message: Cow<'k, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    remediation_url: Option<Cow<'k, str>>,
}

/// The text of a denial; `None` where it is too long to be shared.
fn written(denial: &Denial) -> Option<String> {
    let Denial { code, message, remediation_url } = denial;
    let kept =
        Kept { code: Cow::Borrowed(code), message: Cow::Borrowed(message), remediation_url: remediation_url.as_deref().map(Cow::Borrowed) };
    serde_json::to_string(&kept).ok().filter(|text| text.len() <= LONGEST)
}

/// The denial of a text; `None` for any other text.
fn read(text: &str) -> Option<Denial> {
    let Kept { code, message, remediation_url } = serde_json::from_str(text).ok()?;
    let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    // Metrics name the codes of Stepward, and no others.
    let known = Denial::ALL.iter().find(|known| known.code == code).map(|known| known.code.clone());
    Some(Denial { code: known.unwrap_or_else(|| owned(code)), message: owned(message), remediation_url: remediation_url.map(owned) })
}

/// Longest text of a denial that is shared, in bytes.
const LONGEST: usize = 16 << 10;

/// Time for which a claim outlives what its service may accept: another one may take older webhooks, and the clock of the server
/// decides.
const SLACK: Duration = Duration::from_secs(60);

/// Time until another service is asked again what came of a webhook; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::code;

    #[test]
    fn a_denial_is_read_as_it_was_written_and_nothing_else_is_one() {
        let own = Denial {
            code: "ours".to_owned().into(),
            message: "a \"message\"\n\0".into(),
            remediation_url: Some("https://example.org/".into()),
        };
        for denial in Denial::ALL.iter().chain([&own]) {
            let read = read(&written(denial).unwrap()).unwrap();
            assert_eq!((&read, code(&read)), (denial, code(denial)));
        }
        for text in ["", "{}", "null", "[]", "\"denied\"", r#"{"code":1,"message":"m"}"#, r#"{"code":"c"}"#] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(written(&Denial { message: "a".repeat(LONGEST).into(), ..own }), None);
    }
}
