//! A ruling of an operator about one device, and the time in which it holds.

use std::cmp::Ordering;

use clock::Span;
use posture::identity::{self, IdentifierKind};
use posture::shown::clean;
use posture::time::UnixTime;

use crate::id::DecisionId;
use crate::identifier::same;

/// A ruling of an operator about one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The id of the ruling.
    pub id: DecisionId,
    /// Kind of the ruling: it denies the device or lets it in.
    pub kind: RulingKind,
    /// The kind of [`Self::device`]; `None`, which only a lock may have, is any kind: a lock is on the side of denying.
    pub identifier_kind: Option<IdentifierKind>,
    /// An identifier of the device, as the operator wrote it.
    pub device: String,
    /// The reason, for people.
    pub reason: String,
    /// The operator who made the ruling, such as `uid 0`.
    pub made_by: String,
    /// The time at which the ruling was made.
    pub made_at: UnixTime,
    /// The end of the ruling, a whole second; `None`: the ruling holds until it is taken back.
    pub until: Option<UnixTime>,
    /// The end of an exemption by the proven time, where the system's clock was ahead of the proven time when the exemption was
    /// made.
    pub proven_until: Option<UnixTime>,
    /// Value of [`Span::corrected`] when the ends were computed.
    pub corrected: i64,
}

/// The effect of a ruling on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulingKind {
    /// The device is denied, whatever anyone knows of it.
    Lock,
    /// The device passes even if a policy denies it or no provider can say.
    Exemption,
}

impl RulingKind {
    /// Both kinds of rulings.
    pub const ALL: &'static [Self] = &[Self::Lock, Self::Exemption];

    /// The word of this kind in the store and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Exemption => "exemption",
        }
    }
}

impl Ruling {
    /// Makes a ruling. An `identifier_kind` of `None` means any kind for a lock, and the serial number for an exemption. A `ttl`
    /// of `None` means until it is taken back; any other ends at the next whole second after it.
    pub fn new(
        kind: RulingKind,
        identifier_kind: Option<IdentifierKind>,
        device: &str,
        reason: &str,
        made_by: &str,
        now: UnixTime,
        ttl: Option<std::time::Duration>,
    ) -> Self {
        let identifier_kind = match kind {
            RulingKind::Lock => identifier_kind,
            RulingKind::Exemption => Some(identifier_kind.unwrap_or(IdentifierKind::Serial)),
        };
        Self {
            id: DecisionId::new(now),
            kind,
            identifier_kind,
            device: device.trim_ascii().to_owned(),
            reason: reason.to_owned(),
            made_by: made_by.to_owned(),
            made_at: now,
            until: ttl.map(|ttl| whole_second(now.saturating_add(ttl))),
            proven_until: None,
            corrected: 0,
        }
    }

    /// Corrects the end, so that the ruling lasts as long as it was meant to, whichever of the clocks is right.
    pub fn anchored(mut self, span: Span) -> Self {
        self.corrected = span.corrected;
        let between = |earlier: UnixTime, later: UnixTime| later.as_nanos().saturating_sub(earlier.as_nanos());
        let ahead = between(span.proven, self.made_at);
        let earlier = self.until.map(|until| UnixTime::from_nanos(until.as_nanos().saturating_sub(ahead)));
        match ahead.cmp(&0) {
            Ordering::Less => self.until = earlier,
            Ordering::Greater if self.kind == RulingKind::Exemption => self.proven_until = earlier,
            _ => {}
        }
        self
    }

    /// Returns whether the ruling is about this identifier of this kind; an identifier of no known kind might be of any.
    ///
    /// A lock covers every spelling of a UDID, and ignores unseen characters at the ends of an identifier. An exemption lets in
    /// only what it names: a dash at another place than in the form of a UDID, or an unseen character, names another device.
    pub fn is_about(&self, kind: Option<IdentifierKind>, text: &str) -> bool {
        if let (RulingKind::Exemption, Some(own)) = (self.kind, self.identifier_kind) {
            return kind == Some(own) && identity::same(own, &self.device, text);
        }
        self.identifier_kind.is_none_or(|own| kind.is_none_or(|kind| kind == own))
            && match self.kind {
                RulingKind::Lock => same(self.identifier_kind.or(kind), clean(&self.device), clean(text)),
                RulingKind::Exemption => same(self.identifier_kind.or(kind), &self.device, text),
            }
    }

    /// Returns whether the ruling holds: a lock until its end is past by every clock, an exemption until its end is past by one
    /// of them.
    pub fn holds(&self, span: Span) -> bool {
        match self.kind {
            RulingKind::Lock => !self.has_ended(span),
            RulingKind::Exemption => {
                self.end(span).is_none_or(|until| span.latest < until)
                    && self.proven_until.is_none_or(|until| span.proven < self.corrected_by(span, until))
            }
        }
    }

    /// Returns whether the end of the ruling is past by every clock, so that the ruling may be forgotten.
    pub fn has_ended(&self, span: Span) -> bool {
        self.end(span).is_some_and(|until| until <= span.earliest)
    }

    /// Returns whether the process before may have seen the end of this exemption. Such an exemption must not hold again though
    /// the clock was set back since. `seen` is the latest time that the process before may have seen.
    pub fn may_have_ended(&self, span: Span, seen: Option<UnixTime>) -> bool {
        let ends = [self.end(span), self.proven_until.map(|until| self.corrected_by(span, until))];
        self.kind == RulingKind::Exemption && ends.into_iter().flatten().any(|end| seen.is_some_and(|seen| end <= seen))
    }

    /// The end of the ruling by the current clock, which may have been corrected since: a lock for a day lasts a day.
    pub fn end(&self, span: Span) -> Option<UnixTime> {
        self.until.map(|until| self.corrected_by(span, until))
    }

    /// Corrects an end: that of a lock only to a later time, that of an exemption only to an earlier one. After sleep a machine
    /// finds its clock ahead, and which of two clocks was wrong is not known for sure.
    fn corrected_by(&self, span: Span, time: UnixTime) -> UnixTime {
        let since = span.corrected.saturating_sub(self.corrected);
        let moved = match self.kind {
            RulingKind::Lock => since.max(0),
            RulingKind::Exemption => since.min(0),
        };
        UnixTime::from_nanos(time.as_nanos().saturating_add(moved))
    }
}

fn whole_second(time: UnixTime) -> UnixTime {
    const SECOND: i64 = 1_000_000_000;
    let beyond = time.as_nanos().rem_euclid(SECOND);
    if beyond == 0 { time } else { UnixTime::from_nanos(time.as_nanos().saturating_add(SECOND - beyond)) }
}
