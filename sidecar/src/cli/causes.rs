//! Errors with their sources.

use std::io;

/// Returns an error and its sources, the outermost first.
pub(super) fn causes<'e>(error: &'e (dyn std::error::Error + 'static)) -> Vec<&'e (dyn std::error::Error + 'static)> {
    let mut causes = vec![error];
    while let Some(last) = causes.last() {
        // An `io::Error` hides the error that it was made from.
        let within = last.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let within = within.map(|error| error as &(dyn std::error::Error + 'static));
        let Some(cause) = within.or_else(|| last.source()) else { break };
        causes.push(cause);
    }
    causes
}

/// Returns the messages of an error and its sources, with colons between.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
