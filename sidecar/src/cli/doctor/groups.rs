//! Examination of the groups that policies name: whether any device that the running service remembers is in them.

use std::time::Duration;

use inventory::Finding;
use proto::v1::CheckGroupsRequest;
use proto::v1::admin_service_client::AdminServiceClient;
use tokio::time::{Instant, timeout_at};

use super::examined::doubtful;
use super::service::admits;
use crate::cli::service::channel_at;
use crate::config::Config;

/// Finds each group that no device is in. There is no finding where no policy names a group, and where there is no service to ask,
/// which has a finding of its own.
pub(super) async fn examine(config: &Config, deadline: Instant) -> Vec<Finding> {
    if !config.policies.values().any(|policy| policy.policy.groups().next().is_some()) || !admits(&config.listen, "admin") {
        return Vec::new();
    }
    let asked = async {
        let channel = channel_at(config.listen.socket("admin")).await.ok()?;
        Some(AdminServiceClient::new(channel).check_groups(CheckGroupsRequest {}).await.ok()?.into_inner())
    };
    let Some(reply) = timeout_at(deadline.min(Instant::now() + ANSWER), asked).await.ok().flatten() else { return Vec::new() };
    if reply.records == 0 {
        let detail = "no device with its groups is remembered yet, so the groups of policies were compared with nothing";
        return vec![doubtful(CHECK, detail, "try again once devices were asked for, or set [sync] of the provider")];
    }
    if reply.groups.is_empty() {
        return vec![Finding::good(CHECK, format!("each that a policy names has devices, by {} records", reply.records))];
    }
    let unknown = |group: proto::v1::UnknownGroup| {
        let fix = if group.meant.is_empty() {
            "correct it, or see that the group has devices".to_owned()
        } else {
            format!("did you mean `{}`?", group.meant)
        };
        let detail = format!(
            "policy {} names the group `{}` in {}, and no device that is remembered is in it",
            group.policy, group.group, group.rule
        );
        doubtful(CHECK, detail, fix)
    };
    reply.groups.into_iter().map(unknown).collect()
}

const CHECK: &str = "groups";

/// Longest time for the service to read what it remembers.
const ANSWER: Duration = Duration::from_secs(8);
