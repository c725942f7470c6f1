//! Who a device is by the word of others: an issuer that signs tokens, or a service that is asked.
//!
//! Checks run on the runtime, before the writer hears of a sign-in; what the writer decides is only whether that user
//! and that device may come in, and it makes them at first sight.

mod breaker;
mod cache;
mod claims;
mod external;
mod json;
pub mod jwt;
pub(crate) mod key_set;

use std::sync::Arc;

use gimbal_codec::{DeviceId, UserId};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::Endpoint;

pub use key_set::KeyError;

use crate::{
    clock,
    command::{TokenHash, Vouched},
    config::Auth,
    error::RequestError,
    metrics::{AuthLabels, KindLabels, Metrics},
};
use external::External;
use jwt::{Identity, Jwt, Reload};

/// Whom an identity is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A user by its id; 1 to 2^63 - 1.
    Id(UserId),
    /// Somebody by a name; the id is ours to give.
    Name {
        /// Whose name it is.
        issuer: Box<str>,
        /// The name.
        name: Box<str>,
    },
}

/// What a caller says of itself beside the token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claimed {
    /// None: whom the token says.
    pub(crate) user: UserId,
    /// None: what the token says.
    pub(crate) device: DeviceId,
    /// Address; empty: not known.
    pub(crate) peer: String,
}

/// How a token is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// By the executor: one of ours.
    Own,
    /// By its signature.
    Jwt,
    /// By asking.
    External,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Jwt => "jwt",
            Self::External => "external",
        }
    }
}

/// All that is believed beside our own tokens.
pub(crate) struct Gate {
    jwt: Option<Arc<Jwt>>,
    external: Option<External>,
    /// Checks under way.
    places: Semaphore,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// `jwt` and `endpoint`: the keys and the service of `config`, if it names any. Needs a Tokio runtime.
    pub(crate) fn new(
        config: &Auth,
        jwt: Option<Arc<Jwt>>,
        endpoint: Option<&Endpoint>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let external = endpoint.map(|endpoint| External::new(&config.external, endpoint, &metrics));
        Self { jwt, external, places: Semaphore::new(config.checks_max), metrics }
    }

    /// Ours are 64 hexadecimal digits, a JWT has two dots. With an external service, whatever is no JWT is for it.
    pub(crate) fn way(&self, token: &[u8]) -> Way {
        if self.jwt.is_some() && token.contains(&b'.') {
            Way::Jwt
        } else if self.external.is_some() {
            Way::External
        } else {
            Way::Own
        }
    }

    /// Whether accounts are kept elsewhere, so that nobody signs in here by phone or by a token of ours.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        self.external.is_some()
    }

    /// A place for one check.
    ///
    /// # Errors
    /// [`RequestError::Busy`]: `checks_max` are under way.
    pub(crate) fn enter(&self) -> Result<SemaphorePermit<'_>, RequestError> {
        self.places.try_acquire().map_err(|_| RequestError::Busy)
    }

    /// Checks a token that is not ours.
    ///
    /// # Errors
    /// [`RequestError::NotSignedIn`] for every token that is refused, alike; [`RequestError::Busy`] at a bound;
    /// [`RequestError::AuthUnavailable`] when who is to be asked does not answer.
    pub(crate) async fn check(&self, claimed: &Claimed, token: &[u8]) -> Result<Vouched, RequestError> {
        let way = self.way(token);
        let _place = self.enter().inspect_err(|_| self.count(way, "busy"))?;
        let started = clock::now();
        let checked = match (way, &self.jwt, &self.external) {
            (Way::Jwt, Some(jwt), _) => jwt_says(jwt, claimed, token),
            (Way::External, _, Some(external)) => external.says(claimed, token).await,
            _ => Err((RequestError::NotSignedIn, "own")),
        };
        let seconds = (clock::now() - started).as_secs_f64();
        self.metrics.auth_seconds.get_or_create(&KindLabels { kind: way.name() }).observe(seconds);
        match checked {
            Ok((vouched, outcome)) => {
                self.count(way, outcome);
                Ok(vouched)
            }
            Err((error, outcome)) => {
                self.count(way, outcome);
                let (user, device) = (claimed.user.get(), claimed.device.get());
                tracing::debug!(kind = way.name(), outcome, user, device, "token refused");
                Err(error)
            }
        }
    }

    /// Nothing that was vouched for before counts any more without being asked again.
    pub(crate) fn forget(&self, user: UserId) {
        if let Some(external) = &self.external {
            external.forget(user);
        }
    }

    /// Reads the issuer's keys again; blocks on the disk.
    pub(crate) fn reload(&self) {
        let Some(jwt) = &self.jwt else { return };
        let outcome = match jwt.reload() {
            Reload::Same => return,
            Reload::New => {
                tracing::info!(keys = jwt.keys(), "keys of the tokens' issuer read again");
                "new"
            }
            Reload::Broken(error) => {
                tracing::warn!(%error, "keys of the tokens' issuer: the old ones count on");
                "broken"
            }
        };
        self.metrics.auth_key_reloads.get_or_create(&crate::metrics::ReasonLabels { reason: outcome }).inc();
    }

    fn count(&self, way: Way, outcome: &'static str) {
        self.metrics.auth_checks.get_or_create(&AuthLabels { kind: way.name(), outcome }).inc();
    }
}

/// What is believed, and how it went; or why not.
type Said = Result<(Vouched, &'static str), (RequestError, &'static str)>;

fn jwt_says(jwt: &Jwt, claimed: &Claimed, token: &[u8]) -> Said {
    let identity = jwt.check(token, clock::now_ms());
    let identity = identity.map_err(|error| (RequestError::NotSignedIn, error.reason()))?;
    vouched(identity, claimed).map(|vouched| (vouched, "ok"))
}

/// The token's word counts; a caller may leave it out or repeat it, and names the device where the token names none.
fn vouched(identity: Identity, claimed: &Claimed) -> Result<Vouched, (RequestError, &'static str)> {
    let Identity { user, device, issued_at_ms, expires_at_ms } = identity;
    let names_other_user = matches!(user, Subject::Id(id) if !claimed.user.is_none() && claimed.user != id);
    let names_other_device =
        device.is_some_and(|device| !claimed.device.is_none() && claimed.device != device);
    if names_other_user || names_other_device {
        return Err((RequestError::NotSignedIn, "mismatch"));
    }
    Ok(Vouched {
        subject: user,
        claimed: claimed.user,
        device: device.unwrap_or(claimed.device),
        is_device_vouched: device.is_some(),
        issued_at_ms,
        expires_at_ms,
    })
}

/// For caches: which token of whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Shown {
    user: UserId,
    device: DeviceId,
    token: [u8; 32],
}

impl Shown {
    fn new(claimed: &Claimed, token: &[u8]) -> Self {
        Self { user: claimed.user, device: claimed.device, token: *TokenHash::of(token).as_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(device: Option<u64>) -> Identity {
        let user = Subject::Id(UserId::new(7));
        Identity { user, device: device.map(DeviceId::new), issued_at_ms: 1, expires_at_ms: 2 }
    }

    fn claimed(user: u64, device: u64) -> Claimed {
        Claimed { user: UserId::new(user), device: DeviceId::new(device), peer: String::new() }
    }

    #[test]
    fn a_caller_may_repeat_what_its_token_says_but_not_contradict_it() {
        for user in [0, 7] {
            for device in [0, 8] {
                let vouched = vouched(identity(Some(8)), &claimed(user, device)).unwrap();
                assert_eq!((vouched.device.get(), vouched.is_device_vouched), (8, true));
            }
        }
        assert_eq!(vouched(identity(Some(8)), &claimed(6, 8)), Err((RequestError::NotSignedIn, "mismatch")));
        assert_eq!(vouched(identity(Some(8)), &claimed(7, 9)), Err((RequestError::NotSignedIn, "mismatch")));
        let free = vouched(identity(None), &claimed(7, 9)).unwrap();
        assert_eq!((free.device.get(), free.is_device_vouched), (9, false));
    }
}
