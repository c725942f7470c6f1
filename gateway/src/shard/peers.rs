//! All shards of the gateway, as seen from outside: where items for them go. This is the gateway's end of the link.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gimbal_codec::ShardId;
use gimbal_rpc::link::{Down, Downlink, LinkFull, Signal, Target};

use super::inbox::{Inbox, Item};

/// Orders that no full queue can lose: the shard looks at them once a turn.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// Odd while the link is up; each change adds one.
    link: AtomicU64,
    /// 0: serve. Else 1 plus the milliseconds over which to drain.
    drain: AtomicU64,
    /// End at once.
    stop: AtomicBool,
}

impl Orders {
    /// Rises with every change of the link; odd while it is up.
    pub(crate) fn link(&self) -> u64 {
        self.link.load(Ordering::Acquire)
    }

    /// Over how many milliseconds to drain, when so ordered.
    pub(crate) fn drain_ms(&self) -> Option<u64> {
        self.drain.load(Ordering::Acquire).checked_sub(1)
    }

    /// Whether to end at once.
    pub(crate) fn stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// All shards of one gateway.
pub(crate) struct Peers {
    inboxes: Vec<Arc<Inbox>>,
    orders: Orders,
}

impl Peers {
    /// The gateway behind `inboxes`, one for each shard in order.
    pub(crate) fn new(inboxes: Vec<Arc<Inbox>>) -> Self {
        Self { inboxes, orders: Orders::default() }
    }

    /// The inbox of one shard.
    ///
    /// # Panics
    /// When there is no such shard.
    pub(crate) fn inbox(&self, shard: ShardId) -> &Arc<Inbox> {
        &self.inboxes[usize::from(shard.0)]
    }

    /// What all shards are to do.
    pub(crate) fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Gives a signal of a session on shard `from` to all other shards, without ringing.
    pub(crate) fn signal(&self, from: ShardId, signal: &Signal) {
        for (index, inbox) in self.inboxes.iter().enumerate() {
            if index != usize::from(from.0) {
                inbox.push(Item::Signal(signal.clone()));
            }
        }
    }

    /// Whether there is any other shard than `shard`.
    pub(crate) fn has_others(&self) -> bool {
        self.inboxes.len() > 1
    }

    /// Wakes all shards that sleep.
    pub(crate) fn ring_all(&self) {
        for inbox in &self.inboxes {
            inbox.ring();
        }
    }

    /// The link came up or went down; shards announce all sessions on a new one.
    pub(crate) fn link_changed(&self, is_up: bool) {
        let now = self.orders.link.load(Ordering::Relaxed);
        let step = match (now % 2 == 1, is_up) {
            (true, true) => 2,
            (false, false) => return,
            _ => 1,
        };
        self.orders.link.store(now + step, Ordering::Release);
        self.ring_all();
    }

    /// Shards close their sessions evenly over `over_ms` and end.
    pub(crate) fn drain(&self, over_ms: u64) {
        self.orders.drain.store(over_ms.saturating_add(1), Ordering::Release);
        self.ring_all();
    }

    /// Shards end at once.
    pub(crate) fn stop(&self) {
        self.orders.stop.store(true, Ordering::Release);
        self.ring_all();
    }

    /// Which shards have to look into their inboxes, as a set of bits.
    fn push(&self, shard: ShardId, item: Down) -> u64 {
        // A shard that does not exist is named only by a link of another life of this gateway: nobody is there.
        let Some(inbox) = self.inboxes.get(usize::from(shard.0)) else { return 0 };
        inbox.push(Item::Down(item));
        1 << shard.0
    }

    fn push_to_all(&self, item: &Down) -> u64 {
        for inbox in &self.inboxes {
            inbox.push(Item::Down(item.clone()));
        }
        u64::MAX
    }

    fn route(&self, item: Down) -> u64 {
        match item {
            Down::SignedIn { session, .. }
            | Down::SignInRefused { session, .. }
            | Down::Announced { session, .. }
            | Down::Kick { session, .. } => self.push(session.shard(), item),
            Down::SendDone { to, .. }
            | Down::SyncDone { to, .. }
            | Down::AckDone { to, .. }
            | Down::PublishDone { to, .. } => self.push(to.0.shard(), item),
            Down::Deliver { body, targets } => {
                if let Some(shard) = only_shard(&targets) {
                    return self.push(shard, Down::Deliver { body, targets });
                }
                let push =
                    |(shard, targets)| self.push(shard, Down::Deliver { body: Arc::clone(&body), targets });
                split(targets).into_iter().map(push).fold(0, |pushed, bit| pushed | bit)
            }
            Down::Room { .. } | Down::All { .. } | Down::Signal(_) => self.push_to_all(&item),
        }
    }
}

const _: () = assert!((crate::config::SHARDS_MAX as u32) < u64::BITS);

impl Downlink for Peers {
    /// Never refuses: a full inbox drops, counts, and makes its shard announce its sessions again.
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        let pushed = items.drain(..).map(|item| self.route(item)).fold(0, |pushed, bits| pushed | bits);
        for (shard, inbox) in self.inboxes.iter().enumerate() {
            if pushed & (1 << shard) != 0 {
                inbox.ring();
            }
        }
        Ok(())
    }
}

/// The shard of all targets, if there is one.
fn only_shard(targets: &[Target]) -> Option<ShardId> {
    let shard = targets.first()?.session.shard();
    targets.iter().all(|target| target.session.shard() == shard).then_some(shard)
}

/// Targets by shard, in order within each.
fn split(targets: Vec<Target>) -> Vec<(ShardId, Vec<Target>)> {
    let mut parts: Vec<(ShardId, Vec<Target>)> = Vec::new();
    for target in targets {
        let shard = target.session.shard();
        match parts.iter_mut().find(|(of, _)| *of == shard) {
            Some((_, part)) => part.push(target),
            None => parts.push((shard, vec![target])),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{Attach, Seq, SessionKey};
    use gimbal_rpc::link::Grant;

    use super::*;
    use crate::ring::Doorbell;

    #[test]
    fn targets_are_split_by_shard_in_order() {
        let target = |shard, index| Target {
            session: SessionKey::new(ShardId(shard), index, 1),
            attach: Attach::new(1),
            seq: Seq::new(1),
        };
        let parts = split(vec![target(1, 1), target(0, 2), target(1, 3)]);
        assert_eq!(parts, [(ShardId(1), vec![target(1, 1), target(1, 3)]), (ShardId(0), vec![target(0, 2)])]);
        assert_eq!(only_shard(&[target(1, 1), target(1, 2)]), Some(ShardId(1)));
        assert_eq!((only_shard(&[target(1, 1), target(0, 2)]), only_shard(&[])), (None, None));
        assert!(split(Vec::new()).is_empty());
    }

    #[test]
    fn only_shards_that_were_given_something_are_woken() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new().unwrap())).collect();
        let inboxes = bells.iter().map(|bell| Arc::new(Inbox::new(10, 1 << 20, Arc::clone(bell))));
        let peers = Peers::new(inboxes.collect());
        bells.iter().for_each(|bell| bell.fall_asleep());
        let session = |shard| SessionKey::new(ShardId(shard), 1, 1);
        let signed_in = |shard| Down::SignedIn {
            session: session(shard),
            attach: Attach::new(1),
            latest: Seq::new(0),
            grant: Grant::default(),
        };
        peers.deliver(&mut vec![signed_in(2), signed_in(9)]).unwrap();
        assert_eq!(bells.iter().map(|bell| bell.rings()).collect::<Vec<_>>(), [0, 0, 1]);
        bells[2].fall_asleep();
        let frame = bytes::Bytes::from_static(b"x");
        peers.deliver(&mut vec![Down::All { frame, per_second: 0 }]).unwrap();
        assert_eq!(bells.iter().map(|bell| bell.rings()).collect::<Vec<_>>(), [1, 1, 2]);
    }

    #[test]
    fn a_link_that_comes_back_unseen_is_still_a_change() {
        let peers = Peers::new(Vec::new());
        peers.link_changed(true);
        let first = peers.orders().link();
        assert_eq!(first % 2, 1);
        peers.link_changed(true);
        assert!(peers.orders().link() > first && peers.orders().link() % 2 == 1);
        peers.link_changed(false);
        assert_eq!(peers.orders().link() % 2, 0);
    }
}
