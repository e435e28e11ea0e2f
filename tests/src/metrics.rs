//! Counters, from Prometheus text or from Envoy's own statistics.

use std::net::SocketAddr;

/// One reading of a `/metrics` page or of Envoy's `/stats`.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads a page.
    pub async fn read(address: SocketAddr, path: &str) -> Self {
        Self(get(address, path).await.unwrap().1)
    }

    /// Reads a page like [`Self::read`]; `None` if the address does not answer.
    pub async fn try_read(address: SocketAddr, path: &str) -> Option<Self> {
        get(address, path).await.ok().map(|(_, text)| Self(text))
    }

    /// The sum of all samples whose series contains every one of the fragments, such as `stepward_decisions_total` and `outcome="allow"`.
    pub fn sum(&self, fragments: &[&str]) -> f64 {
        self.0
            .lines()
            .filter(|line| !line.starts_with('#') && fragments.iter().all(|fragment| line.contains(fragment)))
            .filter_map(|line| line.rsplit([' ', ':']).next()?.parse::<f64>().ok())
            .sum()
    }

    /// The text of the page.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Status and body of a plain GET.
///
/// # Errors
/// The error if the address does not answer.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), reqwest::Error> {
    crate::client::crypto();
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(10)).build()?;
    let response = client.get(format!("http://{address}{path}")).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}
