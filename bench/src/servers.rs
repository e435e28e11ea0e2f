//! The servers that Stepward is measured against: one that allows everything, and a gRPC method that does nothing.

use std::path::Path;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use proto::v1::posture_service_server::{PostureService, PostureServiceServer};
use proto::v1::{BatchCheckRequest, BatchCheckResponse, LookupRequest, LookupResponse, WatchRequest, WatchResponse};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A server that reads nothing of a request, and allows it.
struct AlwaysAllow;

#[tonic::async_trait]
impl Authorization for AlwaysAllow {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let status = Some(RpcStatus { code: 0, ..RpcStatus::default() });
        let http_response = Some(HttpResponse::OkResponse(OkHttpResponse::default()));
        Ok(Response::new(CheckResponse { status, http_response, ..CheckResponse::default() }))
    }
}

/// A server that looks nothing up.
struct Empty;

#[tonic::async_trait]
impl PostureService for Empty {
    async fn lookup(&self, _: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Ok(Response::new(LookupResponse::default()))
    }

    type WatchStream = tokio_stream::Empty<Result<WatchResponse, Status>>;

    async fn check(&self, _: Request<proto::v1::CheckRequest>) -> Result<Response<proto::v1::CheckResponse>, Status> {
        Ok(Response::new(proto::v1::CheckResponse::default()))
    }

    async fn batch_check(&self, _: Request<BatchCheckRequest>) -> Result<Response<BatchCheckResponse>, Status> {
        Ok(Response::new(BatchCheckResponse::default()))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// Serves both on a socket until the process is ended, with the sidecar's HTTP/2 windows.
pub(crate) async fn serve(socket: &Path) -> anyhow::Result<()> {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket)?);
    Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(AuthorizationServer::new(AlwaysAllow))
        .add_service(PostureServiceServer::new(Empty))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
