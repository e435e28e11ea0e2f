//! CPU time of a process as the kernel accounts it, user and system, to the nanosecond, including threads that have ended.

use std::time::Duration;

use anyhow::Context as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The CPU time that a process has used since it started.
pub(crate) fn used(process: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?)).with_context(|| format!("CPU clock of process {process}"))?;
    Ok(clock_gettime(clock)?.into())
}

/// A stopwatch for the CPU time of several processes.
#[derive(Debug)]
pub(crate) struct Usage(Vec<(u32, Duration)>);

impl Usage {
    /// Starts the stopwatch.
    pub(crate) fn start(processes: &[u32]) -> anyhow::Result<Self> {
        Ok(Self(processes.iter().map(|id| Ok((*id, used(*id)?))).collect::<anyhow::Result<_>>()?))
    }

    /// The CPU time that each process has used since.
    pub(crate) fn stop(&self) -> anyhow::Result<Vec<Duration>> {
        self.0.iter().map(|(id, before)| Ok(used(*id)?.saturating_sub(*before))).collect()
    }
}
