//! What the calls of one connection tell it, and what it tells them: who is there, who cancels, who does not read.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::Notify;

use crate::{api_key::Role, clock};

/// Calls that one connection may abandon each second: a client gives up on what is late, one that goes on resetting only
/// makes work (rapid reset, CVE-2023-44487).
const CANCELS_PER_SECOND: u32 = 128;
/// The same at once: some rounds of all calls that a connection can have.
const CANCELS_BURST: u32 = 1024;
/// An answer that is not read within this holds memory for nobody.
const READ_DEADLINE_SECS: u64 = 30;

/// The other end of a connection; in the extensions of each of its requests. Clones are the same peer.
#[derive(Clone)]
pub(crate) struct Peer {
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    /// What its certificate stands for.
    role: Option<Role>,
    cancels: AtomicU32,
    /// When answers were begun that are not fully read.
    unread: Mutex<Vec<Instant>>,
    cut: OnceLock<&'static str>,
    told: Notify,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, role: Option<Role>) -> Self {
        let shared = Shared {
            address,
            role,
            cancels: AtomicU32::new(0),
            unread: Mutex::default(),
            cut: OnceLock::new(),
            told: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Where it comes from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What its certificate stands for.
    pub(crate) fn role(&self) -> Option<Role> {
        self.shared.role
    }

    /// A call was abandoned before its answer, or before all of it had come.
    pub(crate) fn cancelled(&self) {
        if self.shared.cancels.fetch_add(1, Ordering::Relaxed) >= CANCELS_BURST {
            self.cut("calls_abandoned");
        }
    }

    /// An answer begins; it is read when what is returned is dropped.
    pub(crate) fn reading(&self) -> Reading {
        let since = clock::now();
        self.unread().push(since);
        Reading { peer: self.clone(), since }
    }

    /// Once a second: what is too much is known then.
    pub(super) fn look(&self, now: Instant) {
        let forgiven = |cancels: u32| Some(cancels.saturating_sub(CANCELS_PER_SECOND));
        let _ = self.shared.cancels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, forgiven);
        let oldest = self.unread().iter().min().copied();
        let is_late = |since: Instant| now.saturating_duration_since(since).as_secs() >= READ_DEADLINE_SECS;
        if oldest.is_some_and(is_late) {
            self.cut("answer_not_read");
        }
    }

    /// Returns why the connection is to be cut, once it is.
    ///
    /// # Cancel-safety
    /// Safe.
    pub(super) async fn is_cut(&self) -> &'static str {
        loop {
            let told = self.shared.told.notified();
            if let Some(reason) = self.shared.cut.get() {
                return reason;
            }
            told.await;
        }
    }

    fn cut(&self, reason: &'static str) {
        // The first reason stands.
        let _ = self.shared.cut.set(reason);
        self.shared.told.notify_one();
    }

    fn unread(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.shared.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a caller sends; that it breaks off is told to its connection.
pub(crate) struct Asked {
    body: Incoming,
    peer: Option<Peer>,
}

impl Asked {
    /// The body of a request from `peer`.
    pub(crate) fn new(body: Incoming, peer: Option<Peer>) -> Self {
        Self { body, peer }
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(_))) = &polled
            && let Some(peer) = self.peer.take()
        {
            peer.cancelled();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer on its way to its reader.
pub(crate) struct Reading {
    peer: Peer,
    since: Instant,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut unread = self.peer.unread();
        if let Some(place) = unread.iter().position(|since| *since == self.since) {
            unread.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), None)
    }

    #[tokio::test]
    async fn a_peer_that_abandons_call_after_call_is_cut_and_one_that_does_so_at_times_is_not() {
        let steady = peer();
        for _ in 0..100 {
            (0..CANCELS_PER_SECOND).for_each(|_| steady.cancelled());
            steady.look(clock::now());
        }
        assert_eq!(steady.shared.cut.get(), None);
        let rapid = peer();
        (0..=CANCELS_BURST).for_each(|_| rapid.cancelled());
        assert_eq!(rapid.is_cut().await, "calls_abandoned");
    }

    #[test]
    fn an_answer_that_is_not_read_in_time_cuts_its_connection() {
        let peer = peer();
        let (first, second) = (peer.reading(), peer.reading());
        drop(first);
        assert_eq!(peer.unread().len(), 1);
        let late = clock::now() + std::time::Duration::from_secs(READ_DEADLINE_SECS);
        peer.look(late - std::time::Duration::from_secs(1));
        assert_eq!(peer.shared.cut.get(), None);
        drop(second);
        peer.look(late);
        assert!(peer.unread().is_empty() && peer.shared.cut.get().is_none());
        let _third = peer.reading();
        peer.look(late + std::time::Duration::from_secs(1));
        assert_eq!(peer.shared.cut.get(), Some(&"answer_not_read"));
    }
}
