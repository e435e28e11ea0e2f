//! The plugin configuration that Envoy hands to the filter.

use stepward_filter::config::Settings;

/// Asserts that accepted settings are within their bounds.
pub fn body(data: &[u8]) {
    let Ok(settings) = Settings::parse(data) else { return };
    assert!((1..=100).contains(&settings.cluster.len()) && settings.cluster.is_ascii());
    assert!((1..=3800).contains(&settings.deadline_ms));
    assert_eq!(settings.deadline().as_millis(), u128::from(settings.deadline_ms));
    assert!(settings.max_waiting > 0 && settings.max_waiting_bytes > 0 && settings.body_limit > 0);
}
