//! Validity of certificates: `check-config` reports its end in good time, and `doctor` what is left of it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Error};

use inventory::{Finding, State};

/// Validity of one certificate, and what the certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// File of the certificate; `None` where a server showed it.
    pub(super) file: Option<PathBuf>,
    subject: String,
    start: SystemTime,
    end: SystemTime,
    used: Used,
}

/// Use of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Used {
    /// Envoy serves with the certificate.
    Envoy,
    /// The service itself serves with the certificate.
    Service,
    /// Clients with certificates of this authority are let in: another authority has to be made known to all of them.
    Authority,
}

/// Stage of a validity at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The validity has not begun.
    NotYet,
    /// The validity goes on for a while.
    Good,
    /// The validity ends soon.
    Soon,
    /// The validity is over.
    Ended,
}

impl Validity {
    /// Reads the dates of a certificate.
    ///
    /// # Errors
    /// The bytes are no certificate.
    pub(super) fn of(der: &CertificateDer<'_>, file: Option<PathBuf>, used: Used) -> Result<Self, Error> {
        let certificate = Certificate::from_der(der)?;
        let body = certificate.tbs_certificate();
        let time = |time: x509_cert::time::Time| SystemTime::UNIX_EPOCH + time.to_unix_duration();
        let (start, end) = (time(body.validity().not_before), time(body.validity().not_after));
        Ok(Self { file, subject: body.subject().to_string(), start, end, used })
    }

    /// Returns the stage of the validity at a moment. Its end is soon in the last quarter of the certificate's life, and of a long
    /// life only in the last weeks.
    pub(super) fn stage(&self, now: SystemTime) -> Stage {
        let soon = if self.used == Used::Authority { SOON_OF_AUTHORITY } else { SOON };
        if self.end <= now {
            Stage::Ended
        } else if self.start > now {
            Stage::NotYet
        } else if self.end.duration_since(self.start).is_ok_and(|life| self.end < now + soon.min(life / 4)) {
            Stage::Soon
        } else {
            Stage::Good
        }
    }

    /// Describes when the certificate ends, ended or begins.
    pub(super) fn said(&self, now: SystemTime) -> String {
        let (word, time) = match self.stage(now) {
            Stage::Ended => ("ended", self.end),
            Stage::NotYet => ("begins", self.start),
            Stage::Good | Stage::Soon => ("ends", self.end),
        };
        format!("the certificate of `{}` {word} at {}", self.subject, humantime::format_rfc3339_seconds(time))
    }

    /// Makes the finding about the certificate: [`Self::said`] with the time that is left, and the remedy.
    pub(super) fn finding(&self, check: &str, now: SystemTime) -> Finding {
        let file = self.file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default();
        let left = |left: Duration| match left.as_secs() / 3600 {
            0 => format!("{} min", left.as_secs() / 60),
            hours @ 1..48 => format!("{hours} h"),
            hours => format!("{} days", hours / 24),
        };
        let until = |time: SystemTime| time.duration_since(now).map(|time| format!(", in {}", left(time))).unwrap_or_default();
        let renew = match self.used {
            Used::Authority => {
                "put the authority's new certificate into the file beside this one before it ends, and remove this one afterwards"
            }
            Used::Envoy => {
                "renew it; with the package that is `systemctl start stepward-envoy-renew`, and `journalctl --unit stepward-envoy-renew` \
                 says why it was not; docs/setup.md, \"Keep it running\", has the commands"
            }
            Used::Service => "renew it, as docs/setup.md, \"Keep it running\", does with Envoy's",
        };
        let anew = match self.used {
            Used::Authority => "put the authority's new certificate into the file in its place",
            Used::Envoy => {
                "issue it anew: step-ca renews none that has ended, unless its provisioner allows that. docs/packages.md, \"Envoy's \
                 certificate\", and docs/setup.md, \"TLS\", have the commands"
            }
            Used::Service => "issue it anew: step-ca renews none that has ended, unless its provisioner allows that",
        };
        let (state, time, fix) = match self.stage(now) {
            Stage::Good => (State::Good, self.end, ""),
            Stage::Soon => (State::Doubtful, self.end, renew),
            Stage::Ended => (State::Bad, self.end, anew),
            Stage::NotYet => (State::Bad, self.start, "see the clocks of this machine and of the authority's"),
        };
        Finding { state, ..Finding::bad(check, format!("{file}{}{}", self.said(now), until(time)), fix) }
    }
}

/// Time before its end from which a certificate is reported, unless its whole life is short: such ones are renewed by the day.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Time before its end from which an authority is reported: an authority takes longer to replace.
const SOON_OF_AUTHORITY: Duration = Duration::from_secs(60 * 24 * 3600);

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn validity(days: u64, used: Used) -> Validity {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = start.into();
        params.not_after = (start + DAY * u32::try_from(days).unwrap()).into();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Validity::of(certificate.der(), Some("tls/a.crt".into()), used).unwrap()
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn e24_the_end_of_a_certificate_is_said_with_what_is_left_and_doubtful_in_good_time() {
        for (days, authority, left, state, said) in [
            (365, false, DAY * 15, State::Good, "ends at "),
            (365, false, DAY * 14 - Duration::from_secs(1), State::Doubtful, ", in 13 days"),
            (365, true, DAY * 61, State::Good, ", in 61 days"),
            (365, true, DAY * 59, State::Doubtful, ", in 59 days"),
            (1, false, DAY / 4, State::Good, ", in 6 h"),
            (1, false, DAY / 4 - Duration::from_secs(1), State::Doubtful, ", in 5 h"),
            (1, false, Duration::from_secs(119), State::Doubtful, ", in 1 min"),
            (1, false, Duration::ZERO, State::Bad, "ended at "),
        ] {
            let validity = validity(days, if authority { Used::Authority } else { Used::Service });
            let finding = validity.finding("certificate", validity.end - left);
            assert!(finding.state == state && finding.detail.contains(said), "{left:?}: {finding:?}");
            assert!(finding.detail.starts_with("tls/a.crt: the certificate of `"), "{finding:?}");
            assert_eq!(finding.fix.is_empty(), state == State::Good);
            assert_eq!(finding.fix.contains("authority's new certificate"), authority && state == State::Doubtful);
        }
        let early = validity(1, Used::Envoy);
        let finding = early.finding("certificate", early.start - DAY);
        assert!(finding.state == State::Bad && finding.detail.ends_with(", in 24 h"), "{finding:?}");
    }

    #[test]
    fn e34_one_that_ends_is_renewed_and_one_that_has_ended_is_issued_anew() {
        for (used, soon, ended) in [
            (
                Used::Envoy,
                "`systemctl start stepward-envoy-renew`, and `journalctl --unit stepward-envoy-renew`",
                "issue it anew: step-ca renews none",
            ),
            (Used::Service, "renew it, as docs/setup.md", "issue it anew: step-ca renews none"),
            (Used::Authority, "before it ends", "the authority's new certificate into the file in its place"),
        ] {
            let validity = validity(1, used);
            let fix = |time| validity.finding("certificate", time).fix;
            assert!(fix(validity.end - DAY / 24).contains(soon), "{used:?}: {}", fix(validity.end - DAY / 24));
            assert!(fix(validity.end).contains(ended) && !fix(validity.end).contains(soon), "{used:?}: {}", fix(validity.end));
        }
    }
}
