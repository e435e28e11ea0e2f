//! Exit codes of commands.

use std::process::ExitCode;

/// Way in which a command ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit code 0: done.
    Done,
    /// Exit code 1: failed.
    Failed,
    /// Exit code 3: denied, or nothing was found.
    Denied,
    /// Exit code 4: refused.
    Refused,
    /// Exit code 5: unavailable.
    Unavailable,
    /// Exit code 141: the reader of the output has gone.
    Unread,
}

impl Exit {
    /// Every exit code with its general meaning; the meaning for a command stands in the command's help. A test holds the
    /// documents against this list.
    pub const ALL: &'static [(u8, &'static str)] = &[
        (0, "done; allowed; found"),
        (1, "failed: a file, the configuration or a socket"),
        (2, "wrong usage"),
        (3, "denied, or no provider has the device"),
        (4, "refused, 4xx"),
        (5, "unavailable: 5xx, or no answer"),
        (Self::UNREAD, "whoever read the output has gone, as `head` does; nothing is said then"),
    ];

    /// Exit code that a shell shows of a program that SIGPIPE ended.
    pub(super) const UNREAD: u8 = 128 + 13;

    /// Returns a text with the list of all exit codes below it.
    pub(super) fn below(text: &str) -> String {
        let codes: Vec<String> = Self::ALL.iter().map(|(code, meaning)| format!("  {code:<4}{meaning}")).collect();
        format!("{text}\n\nExit codes:\n{}", codes.join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Denied => 3,
            Exit::Refused => 4,
            Exit::Unavailable => 5,
            Exit::Unread => Exit::UNREAD,
        })
    }
}
