//! The checks with a name of their own, for common rules without an expression. They are evaluated natively.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::inputs::Inputs;
use super::schema::{self, Path};
use super::version::Version;
use crate::identity::Trust;
use crate::outcome::Denial;
use crate::record::{Compliance, Fact, Field, Fields, Group};
use crate::time::UnixTime;

/// Key of `min_os` for platforms that it does not name.
pub(super) const OTHER: &str = "other";

/// A check with a name of its own.
#[derive(Clone, Debug)]
pub(super) enum Shorthand {
    /// The check `not_lost`. If `asked`, the operator wrote it, and a record that cannot say is denied.
    NotLost {
        asked: bool,
    },
    NotWiping {
        asked: bool,
    },
    Managed,
    Trust(Trust),
    MaxAge(Duration),
    MaxSilence(Duration),
    Compliance(Compliance),
    MinOs(MinOs),
    GroupsNone(Vec<String>),
    GroupsAll(Vec<String>),
    GroupsAny(Vec<String>),
}

/// A check with a name of its own, as operators know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Key of the check in the configuration, such as `not_lost`.
    pub key: &'static str,
    /// Denial where the check does not hold.
    pub denial: Denial,
}

/// Declares [`NAMED`]: each check with its key and its denial. The compiler names a check that has no line.
macro_rules! named {
    ($($check:ident => $key:literal, $denial:ident;)*) => {
        /// All checks with a name of their own, in the order in which they are made.
        pub const NAMED: &[Named] = &[$(Named { key: $key, denial: Denial::$denial }),*];

        impl Shorthand {
            /// The check's name in the configuration, such as `not_lost`.
            pub(super) const fn name(&self) -> &'static str {
                match self {
                    $(Self::$check { .. } => $key,)*
                }
            }

            pub(super) const fn denial(&self) -> Denial {
                match self {
                    $(Self::$check { .. } => Denial::$denial,)*
                }
            }
        }
    };
}

named! {
    NotLost => "not_lost", DEVICE_LOST;
    NotWiping => "not_wiping", DEVICE_WIPE_PENDING;
    Managed => "managed", DEVICE_UNMANAGED;
    Trust => "trust", TRUST_INSUFFICIENT;
    MaxAge => "max_age", RECORD_TOO_OLD;
    MaxSilence => "max_silence", DEVICE_SILENT;
    Compliance => "compliance", NOT_COMPLIANT;
    MinOs => "min_os", OS_OUTDATED;
    GroupsNone => "groups_none", GROUP_FORBIDDEN;
    GroupsAll => "groups_all", GROUP_REQUIRED;
    GroupsAny => "groups_any", GROUP_REQUIRED;
}

/// Least versions of operating systems.
#[derive(Clone, Debug)]
pub(super) enum MinOs {
    One(Version),
    /// Versions by platform, in lower case.
    ByPlatform(BTreeMap<String, Version>),
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Pass,
    Fail,
    /// The check needs a value that is not known; holds its name.
    Unknown(String),
    /// The check could not be evaluated; holds the reason.
    Error(String),
}

impl Shorthand {
    /// The check's setting, as the operator wrote it.
    pub(super) fn wanted(&self) -> Json {
        match self {
            Self::NotLost { asked } | Self::NotWiping { asked } => {
                if *asked {
                    json!(true)
                } else {
                    json!("where it is known")
                }
            }
            Self::Managed => json!(true),
            Self::Trust(trust) => json!(trust.as_str()),
            Self::MaxAge(most) | Self::MaxSilence(most) => json!(length(*most)),
            Self::Compliance(state) => json!(state.as_str()),
            Self::MinOs(MinOs::One(least)) => json!(format!("{least:?}")),
            Self::MinOs(MinOs::ByPlatform(least)) => {
                least.iter().map(|(platform, least)| (platform.clone(), json!(format!("{least:?}")))).collect::<Map<_, _>>().into()
            }
            Self::GroupsNone(names) | Self::GroupsAll(names) | Self::GroupsAny(names) => json!(names),
        }
    }

    /// The groups in the check's setting.
    pub(super) fn groups(&self) -> Option<&[String]> {
        match self {
            Self::GroupsNone(names) | Self::GroupsAll(names) | Self::GroupsAny(names) => Some(names),
            _ => None,
        }
    }

    /// Fields of the record that the check reads.
    pub(super) const fn reads(&self) -> Fields {
        match self {
            Self::NotLost { .. } => Fields::of(&[Field::Lost]),
            Self::NotWiping { .. } => Fields::of(&[Field::WipePending]),
            Self::Managed => Fields::of(&[Field::Managed]),
            Self::Trust(_) | Self::MaxAge(_) => Fields::NONE,
            Self::MaxSilence(_) => Fields::of(&[Field::LastSeen]),
            Self::Compliance(_) => Fields::of(&[Field::Compliance]),
            Self::MinOs(MinOs::One(_)) => Fields::of(&[Field::OsVersion]),
            Self::MinOs(MinOs::ByPlatform(_)) => Fields::of(&[Field::Platform, Field::OsVersion]),
            Self::GroupsNone(_) | Self::GroupsAll(_) | Self::GroupsAny(_) => Fields::of(&[Field::Groups]),
        }
    }

    /// Returns whether the check denies a record in which a field that it reads is not known.
    pub(super) const fn is_strict(&self) -> bool {
        !matches!(self, Self::NotLost { asked: false } | Self::NotWiping { asked: false })
    }

    /// Values that the check reads besides the record.
    pub(super) fn paths(&self) -> Vec<Path> {
        match self {
            Self::Trust(_) => vec![Path::Trust],
            Self::MaxSilence(_) => vec![Path::Now],
            Self::MaxAge(_) => vec![Path::FetchedAt],
            _ => Vec::new(),
        }
    }

    /// Evaluates the check. The fields of [`Self::reads`] are known, unless the check is not strict.
    pub(super) fn judge(&self, inputs: &Inputs<'_>) -> Finding {
        let Inputs { record, now, .. } = inputs;
        match self {
            Self::NotLost { asked } => harmless(&record.lost, *asked, Field::Lost),
            Self::NotWiping { asked } => harmless(&record.wipe_pending, *asked, Field::WipePending),
            Self::Managed => pass_if(record.managed == Fact::Value(true)),
            Self::Trust(least) => pass_if(inputs.trust >= *least),
            Self::MaxAge(most) => no_older(inputs.fetched_at, *most, *now),
            Self::MaxSilence(most) => match record.last_seen {
                Fact::Value(last_seen) => no_older(last_seen, *most, *now),
                Fact::Absent | Fact::Unknown => Finding::Fail,
            },
            Self::Compliance(required) => pass_if(match record.compliance.value() {
                Some(Compliance::GracePeriod) => *required == Compliance::GracePeriod,
                state => state == Some(&Compliance::Compliant),
            }),
            Self::MinOs(least) => least.judge(inputs),
            Self::GroupsNone(names) if names.iter().any(|name| is_in(&record.groups, name)) => Finding::Fail,
            Self::GroupsAll(names) if names.iter().all(|name| is_in(&record.groups, name)) => Finding::Pass,
            Self::GroupsAny(names) if names.iter().any(|name| is_in(&record.groups, name)) => Finding::Pass,
            // A group whose name is unknown may be any of those that the rule names.
            Self::GroupsNone(_) | Self::GroupsAll(_) | Self::GroupsAny(_) if schema::is_any_unnamed(&record.groups) => {
                Finding::Unknown(schema::UNNAMED.to_owned())
            }
            Self::GroupsNone(_) => Finding::Pass,
            Self::GroupsAll(_) | Self::GroupsAny(_) => Finding::Fail,
        }
    }
}

impl MinOs {
    fn judge(&self, inputs: &Inputs<'_>) -> Finding {
        let Inputs { record, .. } = inputs;
        let least = match self {
            Self::One(least) => Some(least),
            Self::ByPlatform(by_platform) => {
                let named = record.platform.value().and_then(|platform| by_platform.get(&platform.trim().to_ascii_lowercase()));
                named.or_else(|| by_platform.get(OTHER))
            }
        };
        // Without a least version for the platform, no version of it is new enough.
        let (Some(least), Some(text)) = (least, record.os_version.value()) else { return Finding::Fail };
        match Version::parse(text) {
            Some(version) => pass_if(version >= *least),
            None => Finding::Error("device.os_version is not a version as in 15.4.1".to_owned()),
        }
    }
}

/// Returns whether the device is in a group of this name or id, exactly: two groups may differ by a letter's case alone.
fn is_in(groups: &Fact<Vec<Group>>, name: &str) -> bool {
    groups.value().is_some_and(|groups| groups.iter().any(|group| group.name == name || group.id == name))
}

const fn pass_if(holds: bool) -> Finding {
    if holds { Finding::Pass } else { Finding::Fail }
}

/// A duration in the largest unit of which it is a whole number.
fn length(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.as_millis());
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    match units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit)) {
        _ if duration.subsec_nanos() > 0 => format!("{millis}ms"),
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

fn harmless(harm: &Fact<bool>, asked: bool, field: Field) -> Finding {
    match harm {
        Fact::Value(true) => Finding::Fail,
        Fact::Value(false) => Finding::Pass,
        // An inventory without such a mark does not say that all is well.
        Fact::Absent | Fact::Unknown if asked => Finding::Unknown(format!("device.{}", field.as_str())),
        Fact::Absent | Fact::Unknown => Finding::Pass,
    }
}

/// Passes if `then` is no older than `most`. A time that lies ahead counts as not known, and does not get here.
fn no_older(then: UnixTime, most: Duration, now: UnixTime) -> Finding {
    pass_if(then >= now.saturating_sub(most))
}
