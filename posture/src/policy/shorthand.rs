//! The checks that have a name of their own, so that nobody needs an expression for them. They are judged natively.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::Inputs;
use super::schema::{self, Path};
use super::version::Version;
use crate::identity::Trust;
use crate::outcome::Denial;
use crate::record::{Compliance, Fact, Field, Fields, Group};
use crate::time::UnixTime;

/// Default for platforms that `min_os` does not name.
pub(super) const OTHER: &str = "other";

/// A check with a name of its own.
#[derive(Clone, Debug)]
pub(super) enum Shorthand {
    /// `asked`: the operator wrote it, so a record that cannot say is denied.
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

/// Least versions.
#[derive(Clone, Debug)]
pub(super) enum MinOs {
    One(Version),
    /// By platform, in lower case.
    ByPlatform(BTreeMap<String, Version>),
}

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Pass,
    Fail,
    /// It takes something that is not known.
    Unknown(String),
    /// It could not be evaluated.
    Error(String),
}

impl Shorthand {
    /// As the configuration spells it.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::NotLost { .. } => "not_lost",
            Self::NotWiping { .. } => "not_wiping",
            Self::Managed => "managed",
            Self::Trust(_) => "trust",
            Self::MaxAge(_) => "max_age",
            Self::MaxSilence(_) => "max_silence",
            Self::Compliance(_) => "compliance",
            Self::MinOs(_) => "min_os",
            Self::GroupsNone(_) => "groups_none",
            Self::GroupsAll(_) => "groups_all",
            Self::GroupsAny(_) => "groups_any",
        }
    }

    /// What the operator wrote, as a configuration has it.
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

    /// The groups that it goes by.
    pub(super) fn groups(&self) -> Option<&[String]> {
        match self {
            Self::GroupsNone(names) | Self::GroupsAll(names) | Self::GroupsAny(names) => Some(names),
            _ => None,
        }
    }

    pub(super) const fn denial(&self) -> Denial {
        match self {
            Self::NotLost { .. } => Denial::DEVICE_LOST,
            Self::NotWiping { .. } => Denial::DEVICE_WIPE_PENDING,
            Self::Managed => Denial::DEVICE_UNMANAGED,
            Self::Trust(_) => Denial::TRUST_INSUFFICIENT,
            Self::MaxAge(_) => Denial::RECORD_TOO_OLD,
            Self::MaxSilence(_) => Denial::DEVICE_SILENT,
            Self::Compliance(_) => Denial::NOT_COMPLIANT,
            Self::MinOs(_) => Denial::OS_OUTDATED,
            Self::GroupsNone(_) => Denial::GROUP_FORBIDDEN,
            Self::GroupsAll(_) | Self::GroupsAny(_) => Denial::GROUP_REQUIRED,
        }
    }

    /// What it reads of the record.
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

    /// Whether a record that does not know what it reads is denied.
    pub(super) const fn is_strict(&self) -> bool {
        !matches!(self, Self::NotLost { asked: false } | Self::NotWiping { asked: false })
    }

    /// What it reads besides the record.
    pub(super) fn paths(&self) -> Vec<Path> {
        match self {
            Self::Trust(_) => vec![Path::Trust],
            Self::MaxSilence(_) => vec![Path::Now],
            Self::MaxAge(_) => vec![Path::FetchedAt],
            _ => Vec::new(),
        }
    }

    /// Judges; what [`Self::reads`] names is known, unless the check is not strict.
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
            // A group whose name nobody said may be any of those that the rule names.
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
        // A platform that nobody set a least version for has none that is new enough.
        let (Some(least), Some(text)) = (least, record.os_version.value()) else { return Finding::Fail };
        match Version::parse(text) {
            Some(version) => pass_if(version >= *least),
            None => Finding::Error("device.os_version is not a version as in 15.4.1".to_owned()),
        }
    }
}

/// By name or by id, and exactly: two groups may differ by a letter's case alone.
fn is_in(groups: &Fact<Vec<Group>>, name: &str) -> bool {
    groups.value().is_some_and(|groups| groups.iter().any(|group| group.name == name || group.id == name))
}

const fn pass_if(holds: bool) -> Finding {
    if holds { Finding::Pass } else { Finding::Fail }
}

/// A duration as it can be written: in the largest of the units that it is a whole number of.
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
        // That the inventory has no such mark does not say that all is well.
        Fact::Absent | Fact::Unknown if asked => Finding::Unknown(format!("device.{}", field.as_str())),
        Fact::Absent | Fact::Unknown => Finding::Pass,
    }
}

/// A time that lies ahead does not come here: it is not known.
fn no_older(then: UnixTime, most: Duration, now: UnixTime) -> Finding {
    pass_if(then >= now.saturating_sub(most))
}
