//! Sign-ins whose tokens others have issued: checked on the runtime, then handed to the writer, unless the connection has
//! gone meanwhile.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use gimbal_codec::SessionKey;
use gimbal_rpc::link::Down;
use hashbrown::HashMap;
use tokio::runtime::Handle;

use super::{Link, Shared};
use crate::{
    auth::Claimed,
    command::{Command, Lane, ReplyTo, Vouched},
    error::RequestError,
};

/// A sign-in to be checked.
pub(super) struct Check {
    pub(super) session: SessionKey,
    pub(super) claimed: Claimed,
    pub(super) token: Bytes,
}

/// Those under way. What ends a session passes here as well, so that no session that has ended is attached, and takes the
/// place of the one that its device has begun since.
pub(super) struct Checks {
    /// On which the checks run; `None` in tests without a runtime.
    runtime: Option<Handle>,
    /// As many as in `sessions`: the lock is for those who have one.
    count: AtomicUsize,
    /// Whether the session still waits.
    sessions: Mutex<HashMap<(Lane, SessionKey), bool>>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let runtime = Handle::try_current().ok();
        Self { runtime, count: AtomicUsize::new(0), sessions: Mutex::default() }
    }

    pub(super) fn begin(&self, lane: Lane, session: SessionKey) {
        let mut sessions = self.lock();
        sessions.insert((lane, session), true);
        self.count.store(sessions.len(), Ordering::SeqCst);
    }

    /// The session has ended; nothing happens if none is under way.
    pub(super) fn cancel(&self, lane: Lane, session: SessionKey) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(waits) = self.lock().get_mut(&(lane, session)) {
            *waits = false;
        }
    }

    /// Does `then` unless the session has ended. What ends it from now on comes after what `then` hands to the writer.
    fn finish(&self, lane: Lane, session: SessionKey, then: impl FnOnce()) {
        let mut sessions = self.lock();
        let waits = sessions.remove(&(lane, session));
        self.count.store(sessions.len(), Ordering::SeqCst);
        if waits == Some(true) {
            then();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Lane, SessionKey), bool>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(super) fn start_checks(self: &Arc<Self>, link: &Arc<Link>, checks: Vec<Check>) {
        for check in checks {
            let Some(runtime) = &self.checks.runtime else {
                self.checked(link, check, Err(RequestError::Unavailable));
                continue;
            };
            // A check that waits for somebody keeps nothing of control alive.
            let (shared, gate, link) = (Arc::downgrade(self), Arc::clone(&self.gate), Arc::clone(link));
            runtime.spawn(async move {
                let says = AssertUnwindSafe(gate.check(&check.claimed, &check.token));
                let said = crate::layer::Caught::new(says).await.unwrap_or(Err(RequestError::Internal));
                if let Some(shared) = shared.upgrade() {
                    shared.checked(&link, check, said);
                }
            });
        }
    }

    fn checked(&self, link: &Link, check: Check, said: Result<Vouched, RequestError>) {
        let Check { session, claimed, .. } = check;
        self.checks.finish(link.lane, session, || {
            let taken = said.and_then(|vouched| {
                let (lane, vouched) = (link.lane, Box::new(vouched));
                let attach = Command::AttachVouched { lane, session, vouched, peer: claimed.peer };
                self.writer.submit(attach, ReplyTo::Nobody)
            });
            if let Err(error) = taken {
                let refused = Down::SignInRefused { session, refusal: error.refusal() };
                self.give(link, refused, "sign_in_link_full");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_has_ended_is_not_attached_and_leaves_nothing() {
        let checks = Checks::new();
        let session = |n| SessionKey::from_u64(n);
        checks.cancel(Lane(1), session(9));
        for n in 1..=3 {
            checks.begin(Lane(1), session(n));
        }
        checks.cancel(Lane(1), session(2));
        checks.cancel(Lane(2), session(3));
        let mut attached = Vec::new();
        for n in 1..=3 {
            checks.finish(Lane(1), session(n), || attached.push(n));
        }
        assert_eq!(attached, [1, 3]);
        assert_eq!((checks.count.load(Ordering::SeqCst), checks.lock().len()), (0, 0));
    }
}
