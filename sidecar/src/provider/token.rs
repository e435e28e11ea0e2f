//! Tokens that are logged in for: one login at a time, renewed ahead of their end, and dropped when they are refused.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posture::secret::Secret;
use reqwest::RequestBuilder;
use tokio::time::{Instant, timeout_at};

use super::Unavailable;
use super::http::{Client, Reply};

/// How a service is logged in to.
#[async_trait]
pub trait Login: Send + Sync + fmt::Debug {
    /// Asks for a token.
    ///
    /// # Errors
    /// [`Unavailable::AuthRejected`] where the credentials are wrong, any other kind where nothing is known of them.
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable>;
}

/// A token as the service gave it.
#[derive(Debug)]
pub struct Grant {
    /// The token itself.
    pub token: Secret,
    /// How long it is good for; a service that does not say so gives `None`, and it is used until it is refused.
    pub lifetime: Option<Duration>,
}

/// A token in use.
#[derive(Debug)]
pub struct Token {
    secret: Secret,
    /// From here on it is renewed, while it is still used.
    renew_at: Option<Instant>,
    ends_at: Option<Instant>,
}

impl Token {
    /// As text for a header; empty where it is none.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.secret.expose()).unwrap_or_default()
    }

    fn new(grant: Grant, asked_at: Instant) -> Self {
        // A lifetime beyond a day says nothing that a refusal would not say in time.
        let lifetime = grant.lifetime.map(|lifetime| lifetime.min(LONGEST));
        let margin = |lifetime: Duration| MARGIN.min(lifetime / 5);
        Self {
            secret: grant.token,
            renew_at: lifetime.map(|lifetime| asked_at + lifetime.saturating_sub(margin(lifetime))),
            ends_at: lifetime.map(|lifetime| asked_at + lifetime),
        }
    }
}

/// The tokens of one service.
#[derive(Debug)]
pub struct Tokens<L> {
    login: L,
    current: Mutex<Current>,
    /// Held while logging in.
    gate: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Current {
    token: Option<Arc<Token>>,
    /// Logins that were rejected in a row, and until when no other one is tried.
    rejected: u32,
    retry_at: Option<Instant>,
}

impl<L: Login> Tokens<L> {
    /// No login yet.
    pub fn new(login: L) -> Self {
        Self { login, current: Mutex::default(), gate: tokio::sync::Mutex::new(()) }
    }

    /// The login itself, for [`super::inventory::Inventory::probe`].
    pub const fn login(&self) -> &L {
        &self.login
    }

    /// A token that is good now. One that is soon at its end is renewed by one caller while the others use it.
    ///
    /// # Errors
    /// As [`Login::login`]; after rejected credentials the next login waits, longer each time, since services lock accounts.
    pub async fn current(&self, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let now = Instant::now();
        let known = self.lock().token.clone();
        if let Some(token) = known {
            let before = |at: Option<Instant>| at.is_none_or(|at| now < at);
            if before(token.renew_at) {
                return Ok(token);
            }
            if before(token.ends_at) {
                return match self.gate.try_lock() {
                    Ok(_turn) => Ok(self.renew(&token, deadline).await.unwrap_or(token)),
                    Err(_) => Ok(token),
                };
            }
        }
        let _turn = timeout_at(deadline, self.gate.lock()).await.map_err(|_| Unavailable::Timeout)?;
        // Whoever had the turn before has left a token, most likely.
        let (token, retry_at) = {
            let current = self.lock();
            (current.token.clone(), current.retry_at)
        };
        match token {
            Some(token) if token.ends_at.is_none_or(|at| Instant::now() < at) => Ok(token),
            _ if retry_at.is_some_and(|at| Instant::now() < at) => Err(Unavailable::AuthRejected),
            _ => self.log_in(deadline).await,
        }
    }

    /// The service refused this token: it is not used again, unless another has taken its place already.
    pub fn reject(&self, token: &Arc<Token>) {
        let mut current = self.lock();
        if current.token.as_ref().is_some_and(|known| Arc::ptr_eq(known, token)) {
            current.token = None;
        }
    }

    /// Sends a request with a token; where the service refuses it, once more with a new one.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Reply::ok`]; a second 401 is [`Unavailable::AuthRejected`]. Other statuses than 401 are
    /// the caller's to judge.
    pub async fn send(
        &self,
        client: &Client,
        deadline: Instant,
        most: usize,
        request: impl Fn(&Token) -> RequestBuilder + Send + Sync,
    ) -> Result<Reply, Unavailable> {
        for _ in 0..2 {
            let token = self.current(deadline).await?;
            let reply = client.send(request(&token), deadline, most).await?;
            if reply.status != http::StatusCode::UNAUTHORIZED {
                return Ok(reply);
            }
            self.reject(&token);
        }
        Err(Unavailable::AuthRejected)
    }

    /// With the turn held: a new token, unless somebody renewed this one meanwhile.
    async fn renew(&self, old: &Arc<Token>, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let known = self.lock().token.clone();
        match known {
            Some(known) if !Arc::ptr_eq(&known, old) => Ok(known),
            _ => self.log_in(deadline).await,
        }
    }

    async fn log_in(&self, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let asked_at = Instant::now();
        let result = timeout_at(deadline, self.login.login(deadline)).await.unwrap_or(Err(Unavailable::Timeout));
        let mut current = self.lock();
        match result {
            Ok(grant) => {
                let token = Arc::new(Token::new(grant, asked_at));
                *current = Current { token: Some(Arc::clone(&token)), ..Current::default() };
                Ok(token)
            }
            Err(error) => {
                if error == Unavailable::AuthRejected {
                    current.rejected = current.rejected.saturating_add(1);
                    current.retry_at = Some(Instant::now() + backoff(current.rejected));
                }
                Err(error)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn backoff(rejected: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << rejected.saturating_sub(1).min(6)).min(LONGEST_BACKOFF)
}

/// Longest margin before a token's end; a short-lived one has a fifth of its life.
const MARGIN: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug)]
    struct Counting {
        logins: AtomicU32,
        lifetime: Option<Duration>,
        result: Mutex<Option<Unavailable>>,
    }

    #[async_trait]
    impl Login for Counting {
        async fn login(&self, _: Instant) -> Result<Grant, Unavailable> {
            let number = self.logins.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            match *self.result.lock().unwrap() {
                Some(error) => Err(error),
                None => Ok(Grant { token: Secret::new(format!("token {number}").into_bytes()), lifetime: self.lifetime }),
            }
        }
    }

    fn tokens(lifetime: Option<Duration>) -> Arc<Tokens<Counting>> {
        Arc::new(Tokens::new(Counting { logins: AtomicU32::new(0), lifetime, result: Mutex::new(None) }))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3)
    }

    async fn fifty(tokens: &Arc<Tokens<Counting>>) -> Vec<Result<Arc<Token>, Unavailable>> {
        let asks = (0..50).map(|_| {
            let tokens = Arc::clone(tokens);
            async move { tokens.current(soon()).await }
        });
        futures::future::join_all(asks).await
    }

    fn logins(tokens: &Tokens<Counting>) -> u32 {
        tokens.login().logins.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn fifty_who_need_a_token_log_in_once() {
        let tokens = tokens(Some(Duration::from_secs(60)));
        assert!(fifty(&tokens).await.iter().all(|token| token.as_ref().unwrap().expose() == "token 0"));
        let refused = tokens.current(soon()).await.unwrap();
        for _ in 0..50 {
            tokens.reject(&refused);
        }
        assert!(fifty(&tokens).await.iter().all(|token| token.as_ref().unwrap().expose() == "token 1"));
        tokens.reject(&refused);
        assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 1", "a late refusal of the old one is none of the new one");
        assert_eq!(logins(&tokens), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_of_sixty_seconds_is_used_for_most_of_them() {
        let tokens = tokens(Some(Duration::from_secs(60)));
        tokens.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(47)).await;
        assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 0");
        tokio::time::advance(Duration::from_secs(2)).await;
        let all = fifty(&tokens).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(all.iter().filter(|token| token.as_ref().unwrap().expose() == "token 0").count() >= 49, "the others use the old one");
        assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 1");
    }

    #[tokio::test(start_paused = true)]
    async fn odd_lifetimes_neither_panic_nor_log_in_for_every_call() {
        let endless = tokens(Some(Duration::MAX));
        endless.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(23 * 3600)).await;
        endless.current(soon()).await.unwrap();
        assert_eq!(logins(&endless), 1);
        let silent = tokens(None);
        silent.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        silent.current(soon()).await.unwrap();
        assert_eq!(logins(&silent), 1);
        let none = tokens(Some(Duration::ZERO));
        assert_eq!(none.current(soon()).await.unwrap().expose(), "token 0", "it is good for the request that it was got for");
    }

    #[tokio::test(start_paused = true)]
    async fn rejected_credentials_are_not_hammered() {
        let tokens = tokens(None);
        *tokens.login().result.lock().unwrap() = Some(Unavailable::AuthRejected);
        for _ in 0..100 {
            assert_eq!(tokens.current(soon()).await.unwrap_err(), Unavailable::AuthRejected);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(logins(&tokens) <= 5, "{}", logins(&tokens));
        *tokens.login().result.lock().unwrap() = None;
        tokio::time::advance(LONGEST_BACKOFF).await;
        assert!(tokens.current(soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_the_login_is_tried_again_at_once() {
        let tokens = tokens(None);
        *tokens.login().result.lock().unwrap() = Some(Unavailable::Network);
        assert_eq!(tokens.current(soon()).await.unwrap_err(), Unavailable::Network);
        *tokens.login().result.lock().unwrap() = None;
        assert!(tokens.current(soon()).await.is_ok());
    }
}
