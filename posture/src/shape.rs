//! Step 1, the shape of a request before its body: method, path, one id, one signature.

use crate::outcome::Refusal;
use crate::verify::Signature;

/// Header with the webhook's id, `X-Smallstep-Webhook-ID`, as header maps spell it.
pub const WEBHOOK_ID: &str = "x-smallstep-webhook-id";
/// Header with the signature, `X-Smallstep-Signature`, as header maps spell it.
pub const SIGNATURE: &str = "x-smallstep-signature";
/// Path below which webhooks are; the rest of the path means nothing.
pub const PATH: &str = "/webhook/";

/// Longest webhook id, trace context and request id that are read, in bytes.
const LONGEST: usize = 256;

/// A request whose headers have the shape of a webhook.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Webhook id that the request claims.
    pub webhook_id: String,
    /// Signature that the request claims.
    pub signature: Signature,
    /// Mode in the query, `?mode=`.
    pub mode: Option<Mode>,
    /// The `Authorization` header; refused if there are several and the webhook requires one.
    pub authorization: Authorization,
    /// Value of `Content-Length`, if it is a number.
    pub content_length: Option<u64>,
    /// W3C trace context, `traceparent`; empty if absent or too long.
    pub traceparent: String,
    /// W3C trace context, `tracestate`; empty if absent or too long.
    pub tracestate: String,
    /// Value of `X-Request-Id`; empty if absent or too long.
    pub request_id: String,
}

/// The `Authorization` headers of a request.
#[derive(Clone, Default)]
pub enum Authorization {
    /// No header.
    #[default]
    None,
    /// One header, with its value.
    One(Vec<u8>),
    /// Several headers, none of which is known to be the one that counts.
    Several,
}

impl Authorization {
    /// The value to compare; `None` if there are several.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Several => None,
        }
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::One(_) => "One([redacted])",
            Self::Several => "Several",
        })
    }
}

/// The inventory to search first: a hint from the URL, never an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Mobile devices first, `?mode=mobiledevice`.
    MobileDevice,
    /// Computers first, `?mode=computer`.
    Computer,
}

impl Mode {
    /// Parses the value of `mode`; `None` if it is unknown.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "mobiledevice" => Some(Self::MobileDevice),
            "computer" => Some(Self::Computer),
            _ => None,
        }
    }
}

/// Reads all headers of a request, including `:method` and `:path`, with names in lower case.
///
/// Every header is read, since a getter that returns the first of several would let the second through unseen.
///
/// # Errors
/// The first refusal in this order: [`Refusal::Method`], [`Refusal::Path`], [`Refusal::WebhookIdHeader`],
/// [`Refusal::SignatureHeader`].
pub fn shape<'h>(headers: impl IntoIterator<Item = (&'h str, &'h [u8])>) -> Result<Shape, Refusal> {
    let mut method = None;
    let mut path = None;
    let mut webhook_id = Seen::None;
    let mut signature = Seen::None;
    let mut authorization = Authorization::None;
    let mut content_length = None;
    let (mut traceparent, mut tracestate, mut request_id) = (String::new(), String::new(), String::new());
    for (name, value) in headers {
        match name {
            ":method" => method = Some(value),
            ":path" => path = Some(value),
            WEBHOOK_ID => webhook_id.see(value),
            SIGNATURE => signature.see(value),
            "authorization" => {
                authorization = match authorization {
                    Authorization::None => Authorization::One(value.to_vec()),
                    _ => Authorization::Several,
                }
            }
            "content-length" => content_length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
            "traceparent" => traceparent = short(value),
            "tracestate" => tracestate = short(value),
            "x-request-id" => request_id = short(value),
            _ => {}
        }
    }
    if method != Some(b"POST") {
        return Err(Refusal::Method);
    }
    let path = path.and_then(|path| std::str::from_utf8(path).ok()).ok_or(Refusal::Path)?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if !path.starts_with(PATH) {
        return Err(Refusal::Path);
    }
    let mode = match query.split('&').find_map(|pair| pair.strip_prefix("mode=")) {
        None | Some("") => None,
        // A misspelt mode would search another inventory than the caller means.
        Some(text) => Some(Mode::parse(text).ok_or(Refusal::Path)?),
    };
    let webhook_id = webhook_id.one().map(short).filter(|id| !id.is_empty()).ok_or(Refusal::WebhookIdHeader)?;
    let signature = signature.one().and_then(Signature::parse).ok_or(Refusal::SignatureHeader)?;
    Ok(Shape { webhook_id, signature, mode, authorization, content_length, traceparent, tracestate, request_id })
}

enum Seen<'h> {
    None,
    One(&'h [u8]),
    Several,
}

impl<'h> Seen<'h> {
    fn see(&mut self, value: &'h [u8]) {
        *self = match self {
            Self::None => Self::One(value),
            _ => Self::Several,
        };
    }

    fn one(self) -> Option<&'h [u8]> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Several => None,
        }
    }
}

/// Returns printable ASCII of a limited length, else an empty text: it goes into logs and into other headers.
fn short(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.len() <= LONGEST && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => text.to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn genuine() -> Vec<(String, String)> {
        [(":method", "POST"), (":path", "/webhook/device-attest?mode=computer"), (WEBHOOK_ID, "id-1"), (SIGNATURE, TAG)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    fn judge(headers: &[(String, String)]) -> Result<Shape, Refusal> {
        shape(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    }

    fn with(name: &str, value: &str) -> Result<Shape, Refusal> {
        let mut headers = genuine();
        headers.retain(|(other, _)| other != name);
        headers.push((name.to_owned(), value.to_owned()));
        judge(&headers)
    }

    fn and(name: &str, value: &str) -> Result<Shape, Refusal> {
        let mut headers = genuine();
        headers.push((name.to_owned(), value.to_owned()));
        judge(&headers)
    }

    #[test]
    fn reads_a_genuine_request() {
        let shape = judge(&genuine()).unwrap();
        assert_eq!(shape.webhook_id, "id-1");
        assert_eq!(shape.mode, Some(Mode::Computer));
        assert_eq!(and("content-length", "12").unwrap().content_length, Some(12));
        assert_eq!(and("x-request-id", "abc").unwrap().request_id, "abc");
        assert_eq!(and("traceparent", "00-a").unwrap().traceparent, "00-a");
        assert_eq!(and("tracestate", "a=b").unwrap().tracestate, "a=b");
    }

    #[test]
    fn refuses_another_method_or_path() {
        for method in ["GET", "PUT", "post", "POST ", ""] {
            assert_eq!(with(":method", method).unwrap_err(), Refusal::Method, "{method}");
        }
        for path in ["/", "/webhook", "webhook/", "//webhook/a", "/Webhook/a", "/?/webhook/", ""] {
            assert_eq!(with(":path", path).unwrap_err(), Refusal::Path, "{path}");
        }
        assert!(with(":path", "/webhook/").is_ok());
    }

    #[test]
    fn refuses_two_ids_or_two_signatures_even_if_equal() {
        assert_eq!(and(WEBHOOK_ID, "id-1").unwrap_err(), Refusal::WebhookIdHeader);
        assert_eq!(and(SIGNATURE, TAG).unwrap_err(), Refusal::SignatureHeader);
        assert_eq!(with(WEBHOOK_ID, "").unwrap_err(), Refusal::WebhookIdHeader);
        assert_eq!(with(WEBHOOK_ID, &"a".repeat(257)).unwrap_err(), Refusal::WebhookIdHeader);
    }

    #[test]
    fn refuses_a_signature_that_step_ca_would_not_write() {
        for bad in [
            "",
            "00",
            TAG.trim_start_matches("00"),
            &TAG.to_uppercase(),
            &format!(" {TAG}"),
            &format!("{TAG} "),
            &format!("{TAG}00"),
            &format!("{TAG},{TAG}"),
            &TAG.replace('f', "g"),
        ] {
            assert_eq!(with(SIGNATURE, bad).unwrap_err(), Refusal::SignatureHeader, "{bad}");
        }
    }

    #[test]
    fn the_mode_is_a_hint_and_nothing_else() {
        for (path, mode) in [
            ("/webhook/a", None),
            ("/webhook/a?mode=mobiledevice", Some(Mode::MobileDevice)),
            ("/webhook/a?x=1&mode=computer", Some(Mode::Computer)),
            ("/webhook/a?mode=", None),
            ("/webhook/a?mode=&mode=computer", None),
            ("/webhook/a?amode=computer", None),
        ] {
            assert_eq!(with(":path", path).unwrap().mode, mode, "{path}");
        }
        for misspelt in ["COMPUTER", "computers", "computer ", "%63omputer", "laptop&mode=computer"] {
            assert_eq!(with(":path", &format!("/webhook/a?mode={misspelt}")).unwrap_err(), Refusal::Path, "d9: {misspelt}");
        }
    }

    #[test]
    fn several_authorizations_count_as_none() {
        let mut headers = genuine();
        headers.push(("authorization".to_owned(), "Bearer a".to_owned()));
        assert_eq!(judge(&headers).unwrap().authorization.value(), Some(&b"Bearer a"[..]));
        headers.push(("authorization".to_owned(), "Bearer a".to_owned()));
        assert_eq!(judge(&headers).unwrap().authorization.value(), None);
        assert!(!format!("{:?}", judge(&headers)).contains("Bearer"));
        assert_eq!(format!("{:?}", judge(&headers).unwrap().authorization), "Several");
    }

    #[test]
    fn what_goes_into_logs_is_short_and_printable() {
        assert_eq!(and("x-request-id", "a\nb").unwrap().request_id, "");
        assert_eq!(and("x-request-id", &"a".repeat(1000)).unwrap().request_id, "");
    }

    proptest! {
        #[test]
        fn never_panics(headers in proptest::collection::vec(("[:a-z-]{0,24}", proptest::collection::vec(any::<u8>(), 0..80)), 0..12)) {
            let _ = shape(headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
        }
    }
}
