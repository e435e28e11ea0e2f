//! Services about the services of a socket: health and reflection.

use anyhow::Context as _;
use tonic::codec::CompressionEncoding;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{self, Health as HealthService, HealthServer};
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;

/// Health of each socket's services, as `grpc.health.v1.Health` reports it.
#[derive(Default)]
pub(super) struct Health(Vec<(HealthReporter, &'static str)>);

impl Health {
    /// Makes the health service of a socket: it reports on these services, on itself, and on the socket as a whole, which has no
    /// name.
    pub(super) async fn of(&mut self, services: &[&'static str]) -> HealthServer<impl HealthService + use<>> {
        let (reporter, service) = tonic_health::server::health_reporter();
        for name in services.iter().chain(&["", HEALTH]) {
            reporter.set_service_status(name, ServingStatus::Serving).await;
            self.0.push((reporter.clone(), name));
        }
        service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip)
    }

    /// Reports that none of the services is served any more.
    pub(super) async fn end(&self) {
        for (reporter, name) in &self.0 {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
    }
}

/// Makes the descriptions of the services beside it. `ext_authz` has none: only Envoy calls it, and knows it.
fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::POSTURE)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}

/// Makes the reflection service.
///
/// # Errors
/// The descriptions cannot be read.
pub(super) fn reflection() -> anyhow::Result<ServerReflectionServer<impl ServerReflection>> {
    let service = described().build_v1().context("describe the services")?;
    Ok(service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip))
}

/// Makes the reflection service under the name that it had before, the only one that Python's and older clients know.
///
/// # Errors
/// As [`reflection`].
pub(super) fn reflection_alpha() -> anyhow::Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>> {
    let service = described().build_v1alpha().context("describe the services")?;
    Ok(service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip))
}

/// Longest request of health and reflection, in bytes: a name. A stream keeps room for it as long as it is open.
const ABOUT: usize = 16 << 10;

/// Names of the services about services.
const HEALTH: &str = health_server::SERVICE_NAME;
pub(super) const REFLECTION: &str = tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME;
pub(super) const REFLECTION_ALPHA: &str = tonic_reflection::pb::v1alpha::server_reflection_server::SERVICE_NAME;
