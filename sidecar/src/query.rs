//! The way in for anything that asks about devices: `PostureService`.

use std::sync::Arc;

use posture::identity::{DeviceId, IdentifierKind};
use posture::record::Fields;
use proto::v1::posture_service_server::PostureService;
use proto::v1::{LookupRequest, LookupResponse, Outcome, ProviderAnswer};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::evaluate::{data, word};
use crate::metrics::{ProviderLabels, Word};
use crate::provider::inventory::Question;
use crate::provider::{Answer, Provider};
use crate::runtime::Runtime;

/// The service on `query.sock`.
#[derive(Debug)]
pub struct Posture {
    runtime: Arc<Runtime>,
}

impl Posture {
    /// Answers from the runtime's providers.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

#[tonic::async_trait]
impl PostureService for Posture {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        let LookupRequest { identifier, identifier_kind, providers } = request.into_inner();
        let kind = match identifier_kind.as_str() {
            "" => IdentifierKind::Serial,
            kind => kind.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?,
        };
        let snapshot = self.runtime.snapshot();
        let asked: Vec<(&Arc<str>, &Arc<Provider>)> = if providers.is_empty() {
            snapshot.providers.iter().collect()
        } else {
            let find = |name: &String| {
                snapshot.providers.get_key_value(name.as_str()).ok_or_else(|| Status::not_found(format!("there is no provider `{name}`")))
            };
            providers.iter().map(find).collect::<Result<_, _>>()?
        };
        let device = DeviceId::new(kind, &identifier);
        let mut answers = Vec::with_capacity(asked.len());
        for (name, provider) in asked {
            let answer = match &device {
                Ok(device) => {
                    let deadline = Instant::now() + DEADLINE;
                    provider.lookup(&Question { device: device.clone(), need: Fields::NONE, hint: None, deadline }, None).await.answer
                }
                Err(_) => Answer::InvalidIdentifier,
            };
            let labels = ProviderLabels { provider: Word(Arc::clone(name)), outcome: word(&answer) };
            self.runtime.metrics.provider_requests.get_or_create(&labels).inc();
            answers.push(told(name, answer));
        }
        Ok(Response::new(LookupResponse { answers }))
    }
}

fn told(provider: &str, answer: Answer) -> ProviderAnswer {
    let told = |outcome: Outcome, detail: &str| ProviderAnswer {
        provider: provider.to_owned(),
        outcome: outcome.into(),
        data: String::new(),
        detail: detail.to_owned(),
    };
    match answer {
        Answer::Found(record) => ProviderAnswer { data: data(&record).as_json().to_owned(), ..told(Outcome::Found, "") },
        Answer::NotFound => told(Outcome::NotFound, "no record has this identifier"),
        Answer::Ambiguous => told(Outcome::Ambiguous, "more than one record has this identifier"),
        Answer::Unavailable(why) => told(Outcome::Unavailable, why.text()),
        Answer::InvalidIdentifier => told(Outcome::InvalidIdentifier, "no device can have this identifier"),
    }
}

/// Time for a provider to answer.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);
