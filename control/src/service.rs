//! The gRPC handlers: convert, delegate, convert. What a request may hold is checked here, once; rules about state are the
//! executor's.

pub(crate) mod accounts;
pub(crate) mod admin;
pub(crate) mod events;
pub(crate) mod friends;
pub(crate) mod groups;
pub(crate) mod messages;
pub(crate) mod presence;
pub(crate) mod rooms;
mod users;

use std::{sync::Arc, time::Duration};

use gimbal_codec::{DeviceId, UserId};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use crate::{
    api_key::{Keys, Scope},
    auth::{Claimed, Way},
    clock,
    code::Codes,
    command::{
        Admitted, Command, IdempotencyKey, Proof, Reply, Sender,
        social::{Actor, Social},
    },
    credential::{self, DeviceCredential},
    error::RequestError,
    plane::Plane,
    sign_in,
    store::Store,
};

/// Users in one page, unless the caller says how many.
const PAGE_SIZE_DEFAULT: usize = 50;
/// Most users of one page.
const PAGE_SIZE_MAX: u32 = 200;

/// What every handler needs.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) plane: Arc<Plane>,
    pub(crate) keys: Keys,
    pub(crate) codes: Arc<Codes>,
    pub(crate) token_lifetime: Duration,
    /// Raised when the server stops.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Services {
    /// A backend or an administrator by its key, whose name the call's span then carries.
    fn may(&self, scope: Scope, metadata: &MetadataMap) -> Result<(), RequestError> {
        self.may_any(&[scope], metadata)
    }

    /// As [`Self::may`], for what several scopes open.
    fn may_any(&self, scopes: &[Scope], metadata: &MetadataMap) -> Result<(), RequestError> {
        let name = self.keys.check_any(scopes, metadata)?;
        tracing::Span::current().record("key", &*name);
        Ok(())
    }

    /// A device with a token of ours as it calls itself: whoever acts for it checks the token. Or one that somebody else vouches
    /// for, checked.
    async fn sender(&self, metadata: &MetadataMap) -> Result<Sender, RequestError> {
        if let Some(Admitted { user, device, .. }) = self.vouched(metadata).await? {
            return Ok(Sender { user, device, proof: Proof::Admitted });
        }
        let DeviceCredential { user, device, token } = DeviceCredential::parse(metadata)?;
        Ok(Sender { user, device, proof: Proof::Token(token) })
    }

    /// Whom a token is of that is not ours; `None` when it is.
    async fn vouched(&self, metadata: &MetadataMap) -> Result<Option<Admitted>, RequestError> {
        let token = credential::shown_text(metadata).ok_or(RequestError::NotSignedIn)?;
        let gate = self.plane.gate();
        if gate.way(&token) == Way::Own {
            return Ok(None);
        }
        let (user, device) = credential::claimed(metadata)?;
        let claimed = Claimed { user, device, peer: String::new() };
        let vouched = Box::new(gate.check(&claimed, &token).await?);
        match self.call(Command::Admit { vouched }).await? {
            Reply::Admitted(admitted) => Ok(Some(admitted)),
            other => mismatch(&other),
        }
    }

    /// Lets in any device with its token, and backends.
    async fn actor_or_backend(&self, scope: Scope, metadata: &MetadataMap) -> Result<(), RequestError> {
        if users::is_backend(metadata) {
            return self.may(scope, metadata);
        }
        self.read(metadata, |_, _, _| Ok(())).await
    }

    /// What `read` finds for a device whose token is good.
    async fn read<T: Send + 'static>(
        &self,
        metadata: &MetadataMap,
        read: impl FnOnce(&dyn Store, UserId, DeviceId) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        if let Some(Admitted { user, device, .. }) = self.vouched(metadata).await? {
            return self.plane.readers().call(move |store| read(store, user, device)).await;
        }
        let DeviceCredential { user, device, token } = DeviceCredential::parse(metadata)?;
        let now_ms = clock::now_ms();
        let checked = move |store: &dyn Store| {
            sign_in::authenticate(store, user, device, &token, now_ms)?;
            read(store, user, device)
        };
        self.plane.readers().call(checked).await
    }

    /// Does `act` for a device's user, or for the user that a backend names; gives that user and the answer.
    async fn act(
        &self,
        scope: Scope,
        metadata: &MetadataMap,
        act: Social,
        idempotency_key: &str,
    ) -> Result<(UserId, Reply), RequestError> {
        let by = self.actor(scope, metadata).await?;
        // A device's keys are its user's own; the backends share one space.
        let idempotency = IdempotencyKey::parse(idempotency_key)?.map(|key| match by {
            Actor::Device(sender) => key.of_user(sender.user),
            Actor::Backend(_) => key,
        });
        act.check()?;
        let reply = self.call(Command::Social { by, act: Box::new(act), idempotency }).await?;
        Ok((by.user(), reply))
    }

    async fn actor(&self, scope: Scope, metadata: &MetadataMap) -> Result<Actor, RequestError> {
        if !users::is_backend(metadata) {
            return Ok(Actor::Device(self.sender(metadata).await?));
        }
        self.may(scope, metadata)?;
        let (user, _) = credential::claimed(metadata).map_err(|_| bad("user_id", "must be a number"))?;
        if user.is_none() {
            return Err(bad("user_id", "must be named in the metadata"));
        }
        Ok(Actor::Backend(user))
    }

    /// What `read` finds for a device's user, or for the user that a backend names (0: none).
    async fn read_as<T: Send + 'static>(
        &self,
        scope: Scope,
        metadata: &MetadataMap,
        read: impl FnOnce(&dyn Store, UserId) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        if !users::is_backend(metadata) {
            return self.read(metadata, |store, user, _| read(store, user)).await;
        }
        self.may(scope, metadata)?;
        let (user, _) = credential::claimed(metadata).map_err(|_| bad("user_id", "must be a number"))?;
        self.plane.readers().call(move |store| read(store, user)).await
    }

    /// Nobody gets a token here while an external service answers for all.
    fn keeps_accounts(&self) -> Result<(), RequestError> {
        if self.plane.gate().is_elsewhere() { Err(RequestError::AccountsElsewhere) } else { Ok(()) }
    }

    async fn call(&self, command: Command) -> Result<Reply, RequestError> {
        self.plane.writer().call(command).await
    }

    fn token_expiry_ms(&self, now_ms: i64) -> i64 {
        let lifetime = i64::try_from(self.token_lifetime.as_millis()).unwrap_or(i64::MAX);
        now_ms.saturating_add(lifetime)
    }
}

/// The writer answered another question than was asked.
///
/// # Panics
/// Always: it is our fault; the layer ends the call and counts it.
fn mismatch(reply: &Reply) -> ! {
    panic!("the writer answered {reply:?} to another question")
}

/// Where a page begins: from a token of ours, or at the start.
fn page_start(token: &str) -> Result<Vec<u8>, RequestError> {
    hex::decode(token).map_err(|_| bad("page_token", "must be the last page's next_page_token"))
}

fn page_limit(size: u32) -> Result<usize, RequestError> {
    match size {
        0 => Ok(PAGE_SIZE_DEFAULT),
        1..=PAGE_SIZE_MAX => Ok(size as usize),
        _ => Err(bad("page_size", "must be at most 200")),
    }
}

fn next_token(next: Option<Vec<u8>>) -> String {
    next.map(hex::encode).unwrap_or_default()
}

fn bad(field: &'static str, rule: &'static str) -> RequestError {
    RequestError::BadRequest { field, rule }
}
