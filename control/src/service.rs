//! The gRPC handlers: convert, delegate, convert. What a request may hold is checked here, once; rules about state are the
//! executor's.

pub(crate) mod accounts;
pub(crate) mod admin;
pub(crate) mod messages;
pub(crate) mod rooms;

use std::{sync::Arc, time::Duration};

use gimbal_codec::{DeviceId, UserId};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use crate::{
    api_key::{Keys, Scope},
    clock,
    code::Codes,
    command::{Command, Proof, Reply, Sender},
    credential::DeviceCredential,
    error::RequestError,
    plane::Plane,
    sign_in,
    store::Store,
};

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
        let name = self.keys.check(scope, metadata)?;
        tracing::Span::current().record("key", name);
        Ok(())
    }

    /// A device as it calls itself; whoever acts for it checks the token.
    fn sender(&self, metadata: &MetadataMap) -> Result<Sender, RequestError> {
        let DeviceCredential { user, device, token } = DeviceCredential::parse(metadata)?;
        Ok(Sender { user, device, proof: Proof::Token(token) })
    }

    /// What `read` finds for a device whose token is good.
    async fn read<T: Send + 'static>(
        &self,
        metadata: &MetadataMap,
        read: impl FnOnce(&dyn Store, UserId, DeviceId) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let DeviceCredential { user, device, token } = DeviceCredential::parse(metadata)?;
        let now_ms = clock::now_ms();
        let checked = move |store: &dyn Store| {
            sign_in::authenticate(store, user, device, &token, now_ms)?;
            read(store, user, device)
        };
        self.plane.readers().call(checked).await
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

fn bad(field: &'static str, rule: &'static str) -> RequestError {
    RequestError::BadRequest { field, rule }
}
