//! The plugin configuration: what the filter knows before the sidecar has sent anything. It holds no secret, since Envoy's
//! `config_dump` shows it.

use std::time::Duration;

use serde::Deserialize;

/// The plugin configuration, a JSON object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Cluster of the sidecar's filter socket.
    pub cluster: String,
    /// Deadline in milliseconds for requests that come before the webhooks are known.
    pub deadline_ms: u32,
    /// Most requests that may wait in one worker.
    pub max_waiting: usize,
    /// Most bytes that may wait, or be sent and unanswered, in one worker.
    pub max_waiting_bytes: usize,
    /// Largest body in bytes, until the webhooks are known.
    pub body_limit: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cluster: "stepward".to_owned(), deadline_ms: 3500, max_waiting: 16_384, max_waiting_bytes: 8 << 20, body_limit: 64 << 10 }
    }
}

/// Error: the filter does not start with this plugin configuration.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The text is not JSON, has an unknown key, or a value of the wrong type.
    #[error("plugin configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of range.
    #[error("plugin configuration: {key} must be {must}")]
    Range {
        /// Name of the key.
        key: &'static str,
        /// Range of its value.
        must: &'static str,
    },
}

impl Settings {
    /// Reads the plugin configuration; an empty one is the default.
    ///
    /// # Errors
    /// [`BadSettings`], which names the key.
    pub fn parse(json: &[u8]) -> Result<Self, BadSettings> {
        let settings: Self = if json.trim_ascii().is_empty() { Self::default() } else { serde_json::from_slice(json)? };
        let range = |good, key, must| if good { Ok(()) } else { Err(BadSettings::Range { key, must }) };
        // A longer name could not be written in the form of `GrpcService` that Envoy takes for an upstream.
        range((1..=100).contains(&settings.cluster.len()) && settings.cluster.is_ascii(), "cluster", "1 to 100 ASCII characters")?;
        range((1..=3800).contains(&settings.deadline_ms), "deadline_ms", "1 to 3800: step-ca gives two attempts 10 s")?;
        range(settings.max_waiting > 0, "max_waiting", "at least 1")?;
        range(settings.max_waiting_bytes > 0, "max_waiting_bytes", "at least 1")?;
        range(settings.body_limit > 0, "body_limit", "at least 1")?;
        Ok(settings)
    }

    /// The deadline of [`Self::deadline_ms`].
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_is_the_default() {
        assert_eq!(Settings::parse(b"").unwrap(), Settings::default());
        assert_eq!(Settings::parse(b"{}").unwrap(), Settings::default());
        assert_eq!(Settings::parse(br#"{"cluster":"step-ca"}"#).unwrap().cluster, "step-ca");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let long = format!(r#"{{"cluster":"{}"}}"#, "a".repeat(101));
        for (json, text) in [
            (r#"{"clusters":"a"}"#, "unknown field `clusters`"),
            (r#"{"cluster":1}"#, "invalid type"),
            (r#"{"cluster":""}"#, "cluster must be"),
            (long.as_str(), "cluster must be"),
            (r#"{"deadline_ms":3801}"#, "deadline_ms must be"),
            (r#"{"deadline_ms":0}"#, "deadline_ms must be"),
            (r#"{"max_waiting":0}"#, "max_waiting must be"),
            (r#"{"max_waiting_bytes":0}"#, "max_waiting_bytes must be"),
            (r#"{"body_limit":0}"#, "body_limit must be"),
        ] {
            let error = Settings::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(text), "{json}: {error}");
        }
    }
}
