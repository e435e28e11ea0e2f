//! Paths of the services' calls, and the longest message that a call takes.

/// Beginning of the path of a call of the filter's service, which takes any number of messages.
pub(super) const FILTER_SERVICE: &str = "/stepward.v1.FilterService/";

/// Beginning of the path of a call of reflection, of either version, which takes any number of messages.
pub(super) const REFLECTION_SERVICE: &str = "/grpc.reflection.";

/// Beginnings of the paths of calls whose streams have no end of their own, nor anything in them that has to be answered.
pub(super) const ENDLESS: [&str; 3] = ["/grpc.health.", REFLECTION_SERVICE, "/stepward.v1.PostureService/Watch"];

/// Longest question in bytes: the largest body that can be configured, a certificate chain and the headers of a trace. A captured
/// request that an operator wants explained is as long.
pub(super) const QUESTION: usize = engine::webhooks::LARGEST_BODY as usize + (256 << 10);
