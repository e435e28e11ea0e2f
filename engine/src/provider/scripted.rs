//! A provider whose answers a test writes.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use inventory::{Answer, Question, Source};
use posture::identity::{DeviceId, IdentifierKind};
use posture::secret::Secret;

use super::configured::ProviderSettings;
use super::source::{Failure, Provider};
use crate::cache::{Evidence, Looked, Terms};

type Lookup = dyn Fn(DeviceId) -> BoxFuture<'static, Answer> + Send + Sync;

/// A provider that answers from a closure, when the closure says so. Any settings count as its own.
pub struct Scripted {
    lookup: Box<Lookup>,
    /// Source of the answers; live unless a test sets another.
    pub source: Source,
    /// Evidence of the answers; fixed unless a test sets another.
    pub evidence: Evidence,
    /// Age of the answers.
    pub age: Option<Duration>,
}

impl Scripted {
    /// A provider whose answers are live.
    pub fn new<F: Future<Output = Answer> + Send + 'static>(lookup: impl Fn(DeviceId) -> F + Send + Sync + 'static) -> Self {
        Self { lookup: Box::new(move |device| Box::pin(lookup(device))), source: Source::Live, evidence: Evidence::Fixed, age: None }
    }
}

#[async_trait]
impl Provider for Scripted {
    fn has(&self, _settings: &ProviderSettings, _secrets: &[Secret]) -> bool {
        true
    }

    async fn lookup(&self, question: &Question, _terms: Terms) -> Looked {
        let answer = (self.lookup)(question.device.clone()).await;
        Looked { answer, source: self.source, age: self.age, evidence: self.evidence.clone() }
    }

    fn stands(&self, _device: &DeviceId, looked: &Looked) -> bool {
        !matches!(looked.evidence, Evidence::Overtaken)
    }

    fn is_asked_by(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }

    fn reload(&self, _name: &str, _accept_shrink: bool) -> Result<String, Failure> {
        Ok("unchanged".to_owned())
    }

    fn len(&self) -> usize {
        0
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}
