//! Tokens that a login gives: one login at a time, renewed ahead of their end, and dropped when they are refused.

use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posture::secret::Secret;
use reqwest::RequestBuilder;
use tokio::sync::{MutexGuard, watch};
use tokio::time::{Instant, timeout_at};

use crate::answer::Unavailable;
use crate::errand::{Errand, Whom};
use crate::http::{Client, Reply};

/// The way to log in to a service.
#[async_trait]
pub trait Login: Send + Sync + fmt::Debug {
    /// Asks for a token.
    ///
    /// # Errors
    /// [`Unavailable::AuthRejected`] where the credentials are wrong, any other kind where nothing is known of them.
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable>;
}

/// A token from a login, with its lifetime.
#[derive(Debug)]
pub struct Grant {
    /// The token's text.
    pub token: Secret,
    /// The time for which the token is good; `None` where the service does not say it: the token is then used until it is
    /// refused.
    pub lifetime: Option<Duration>,
}

/// A token in use, with the moments of its renewal and its end.
#[derive(Debug)]
pub struct Token {
    secret: Secret,
    /// The moment from which the token is renewed while it is still used.
    renew_at: Option<Instant>,
    ends_at: Option<Instant>,
}

impl Token {
    /// The token as text for a header; empty where it is not UTF-8.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.secret.expose()).unwrap_or_default()
    }

    fn new(grant: Grant, asked_at: Instant) -> Self {
        // The lifetime is cut to a day: a refusal ends the token in time anyway.
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
pub struct Tokens<L>(Arc<Kept<L>>);

#[derive(Debug)]
struct Kept<L> {
    login: L,
    current: Mutex<Current>,
    /// The turn to log in, held during the login.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// A signal that is sent each time the service answers a request of the login under way.
    answers: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Current {
    token: Option<Arc<Token>>,
    /// Number of logins that were rejected in a row.
    rejected: u32,
    /// The moment until which no further login is tried.
    retry_at: Option<Instant>,
    /// The moment until which no further renewal is tried, after one that failed.
    renew_at: Option<Instant>,
}

impl<L: Login + 'static> Tokens<L> {
    /// Makes an empty store; the first call that needs a token logs in.
    pub fn new(login: L) -> Self {
        Self(Arc::new(Kept { login, current: Mutex::default(), gate: Arc::default(), answers: watch::Sender::default() }))
    }

    /// The login itself, for [`super::inventory::Inventory::probe`].
    pub fn login(&self) -> &L {
        &self.0.login
    }

    /// Gives a token that is good now. A token that soon ends is renewed by a task of its own, while it is still used: a slow login
    /// is no silence of the service towards whoever comes first.
    ///
    /// # Errors
    /// The errors of [`Login::login`]. After rejected credentials the next login waits, longer each time, since services lock
    /// accounts.
    pub async fn current(&self, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let now = Instant::now();
        let known = self.0.lock().token.clone();
        if let Some(token) = known {
            let before = |at: Option<Instant>| at.is_none_or(|at| now < at);
            if before(token.renew_at) {
                return Ok(token);
            }
            if before(token.ends_at) {
                if let Ok(turn) = Arc::clone(&self.0.gate).try_lock_owned() {
                    let (kept, old) = (Arc::clone(&self.0), Arc::clone(&token));
                    tokio::spawn(async move {
                        let _turn = turn;
                        kept.renew(&old).await;
                    });
                }
                return Ok(token);
            }
        }
        self.other_than(None, deadline).await
    }

    /// Gives a token that is good now, other than the one that the service `refused`. Others use that one until there is another,
    /// since it may have been refused for what was asked.
    async fn other_than(&self, refused: Option<&Arc<Token>>, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let _turn = timeout_at(deadline, self.0.turn()).await.map_err(|_| Unavailable::Timeout)?;
        // The holder of the turn before has most likely left a token.
        let (token, retry_at) = {
            let current = self.0.lock();
            (current.token.clone(), current.retry_at)
        };
        let is_good = |token: &Arc<Token>| token.ends_at.is_none_or(|at| Instant::now() < at);
        let is_other = |token: &Arc<Token>| refused.is_none_or(|refused| !Arc::ptr_eq(refused, token));
        match token.filter(is_good).filter(is_other) {
            Some(token) => Ok(token),
            None if retry_at.is_some_and(|at| Instant::now() < at) => Err(Unavailable::AuthRejected),
            None => self.0.log_in(deadline).await,
        }
    }

    /// Sends a request with a token; if the service refuses the token, sends it once more with a new one.
    ///
    /// # Errors
    /// The errors of [`Client::send`]; a second 401 is [`Unavailable::AuthRejected`]. Other statuses than 401 are the caller's to
    /// judge.
    pub async fn send(
        &self,
        client: &Client,
        deadline: Instant,
        most: usize,
        request: impl Fn(&Token) -> RequestBuilder + Send + Sync,
    ) -> Result<Reply, Unavailable> {
        let mut refused: Option<Arc<Token>> = None;
        for _ in 0..2 {
            let token = match &refused {
                None => self.current(deadline).await?,
                Some(refused) => self.other_than(Some(refused), deadline).await?,
            };
            let reply = client.send(request(&token), deadline, most).await?;
            if reply.status != http::StatusCode::UNAUTHORIZED {
                return Ok(reply);
            }
            refused = Some(token);
        }
        Err(Unavailable::AuthRejected)
    }
}

impl<L: Login> Kept<L> {
    /// Waits for the turn to log in. What the service answers to the login of another meanwhile is no silence towards this call.
    async fn turn(&self) -> MutexGuard<'_, ()> {
        let mut answers = self.answers.subscribe();
        let mut turn = pin!(self.gate.lock());
        loop {
            tokio::select! {
                biased;
                Ok(()) = answers.changed() => Errand::current().iter().for_each(|errand| errand.heard()),
                turn = &mut turn => return turn,
            }
        }
    }

    /// Passes on to those who wait that the service answers requests of this login.
    async fn tell(&self, errand: &Errand) -> Infallible {
        let mut clock = errand.clock();
        let mut told = clock.borrow_and_update().answers;
        loop {
            if clock.changed().await.is_err() {
                return std::future::pending().await;
            }
            let answers = clock.borrow_and_update().answers;
            if answers != std::mem::replace(&mut told, answers) {
                self.answers.send_replace(());
            }
        }
    }

    /// Logs in for a new token, unless another caller already renewed `old`, which stays where the login fails. The caller holds the
    /// turn.
    async fn renew(&self, old: &Arc<Token>) {
        let (known, waits) = {
            let (current, now) = (self.lock(), Instant::now());
            (current.token.clone(), [current.retry_at, current.renew_at].into_iter().flatten().any(|at| now < at))
        };
        if known.is_none_or(|known| Arc::ptr_eq(&known, old)) && !waits {
            // A login that hangs keeps nobody who needs a token once the old one has ended.
            let deadline = old.ends_at.into_iter().fold(Instant::now() + RENEWAL, Instant::min);
            if self.log_in(deadline).await.is_err() {
                self.lock().renew_at = Some(Instant::now() + RENEWED_AGAIN);
            }
        }
    }

    async fn log_in(&self, deadline: Instant) -> Result<Arc<Token>, Unavailable> {
        let asked_at = Instant::now();
        // A renewal is of no call of the cache.
        let errand = Errand::current().unwrap_or_else(|| Errand::new(Whom::Known, asked_at));
        let login = errand.run(timeout_at(deadline, self.login.login(deadline)));
        let result = tokio::select! {
            biased;
            result = login => result.unwrap_or(Err(Unavailable::Timeout)),
            never = self.tell(&errand) => match never {},
        };
        if result.is_ok() {
            self.answers.send_replace(());
        }
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

/// Longest margin before a token's end; a short-lived token has a fifth of its life.
const MARGIN: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Time for the login of a renewal.
const RENEWAL: Duration = Duration::from_secs(8);
/// Time until a renewal that failed is tried again, while the old token is used.
const RENEWED_AGAIN: Duration = Duration::from_secs(5);
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
        let others = futures::future::join_all((0..50).map(|_| tokens.other_than(Some(&refused), soon()))).await;
        assert!(others.iter().all(|token| token.as_ref().unwrap().expose() == "token 1"));
        assert!(fifty(&tokens).await.iter().all(|token| token.as_ref().unwrap().expose() == "token 1"));
        let late = tokens.other_than(Some(&refused), soon()).await.unwrap();
        assert_eq!(late.expose(), "token 1", "a late refusal of the old one is none of the new one");
        assert_eq!(logins(&tokens), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_of_sixty_seconds_is_used_for_most_of_them() {
        let tokens = tokens(Some(Duration::from_secs(60)));
        tokens.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(47)).await;
        assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 0");
        tokio::time::advance(Duration::from_secs(2)).await;
        let asked = Instant::now();
        let all = fifty(&tokens).await;
        assert!(all.iter().all(|token| token.as_ref().unwrap().expose() == "token 0"), "all use the old one meanwhile");
        assert_eq!(asked.elapsed(), Duration::ZERO, "nobody waits for the login");
        tokio::time::sleep(Duration::from_millis(201)).await;
        assert_eq!(logins(&tokens), 2, "and it is renewed once");
        assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 1");
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_renewal_that_fails_is_not_tried_for_each_lookup() {
        let tokens = tokens(Some(Duration::from_secs(60)));
        tokens.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(49)).await;
        *tokens.login().result.lock().unwrap() = Some(Unavailable::RateLimited(None));
        for _ in 0..100 {
            assert_eq!(tokens.current(soon()).await.unwrap().expose(), "token 0");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(logins(&tokens), 3, "every five seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_from_its_very_moment_on_and_not_used_at_its_end() {
        for (at, waits, expected) in [(47_999, 0, 1), (48_000, 0, 2), (59_999, 0, 2), (60_000, 200, 2)] {
            let (tokens, began) = (tokens(Some(Duration::from_secs(60))), Instant::now());
            tokens.current(soon()).await.unwrap();
            tokio::time::advance(began + Duration::from_millis(at) - Instant::now()).await;
            let asked = Instant::now();
            tokens.current(soon()).await.unwrap();
            assert_eq!(asked.elapsed().as_millis(), waits, "{at}");
            tokio::task::yield_now().await;
            assert_eq!(logins(&tokens), expected, "{at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_login_that_failed_is_tried_again_at_the_end_of_its_pause_and_not_before() {
        const MOMENT: Duration = Duration::from_nanos(1);
        let (rejected, renewed) = (tokens(None), tokens(Some(Duration::from_secs(60))));
        renewed.current(soon()).await.unwrap();
        tokio::time::advance(Duration::from_secs(49)).await;
        for (tokens, why, pause) in [(rejected, Unavailable::AuthRejected, FIRST_BACKOFF), (renewed, Unavailable::Network, RENEWED_AGAIN)] {
            *tokens.login().result.lock().unwrap() = Some(why);
            let tries = async || {
                drop(tokens.current(soon()).await);
                tokio::task::yield_now().await;
                logins(&tokens)
            };
            let fails_at = Instant::now() + Duration::from_millis(200);
            let before = tries().await;
            tokio::time::sleep_until(fails_at).await;
            tokio::task::yield_now().await;
            tokio::time::advance(pause.saturating_sub(MOMENT)).await;
            assert_eq!(tries().await, before, "{why:?}");
            tokio::time::advance(MOMENT).await;
            assert_eq!(tries().await, before + 1, "{why:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a12_who_waits_for_the_login_of_another_hears_of_its_answer() {
        let tokens = tokens(None);
        let wait = || {
            let (tokens, errand) = (Arc::clone(&tokens), Errand::new(Whom::Known, Instant::now()));
            async move {
                errand.run(tokens.current(soon())).await.unwrap();
                errand.clock().borrow().since.unwrap().elapsed()
            }
        };
        let (_, waited) = tokio::join!(wait(), wait());
        assert_eq!(waited, Duration::ZERO, "the time of the login is none of the lookup");
        assert_eq!(logins(&tokens), 1);
    }

    /// A login of two requests, each answered in 0.9 s.
    #[derive(Debug)]
    struct TwoSteps;

    #[async_trait]
    impl Login for TwoSteps {
        async fn login(&self, _: Instant) -> Result<Grant, Unavailable> {
            for _ in 0..2 {
                let out = Errand::current().unwrap().goes_out();
                tokio::time::sleep(Duration::from_millis(900)).await;
                out.answered();
            }
            Ok(Grant { token: Secret::new(b"token".to_vec()), lifetime: None })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a12_who_waits_for_a_login_of_two_requests_hears_of_the_first() {
        let tokens = Tokens::new(TwoSteps);
        let (first, second) = (Errand::new(Whom::New, Instant::now()), Errand::new(Whom::Known, Instant::now()));
        let (one, other) = tokio::join!(first.run(tokens.current(soon())), second.run(tokens.current(soon())));
        assert!(one.is_ok() && other.is_ok());
        assert!(!first.was_slow() && !second.was_slow(), "each request was answered in time");
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
