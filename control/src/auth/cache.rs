//! Yeses of a service, for a while. A no is never remembered: whoever was refused may have signed in since.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gimbal_codec::UserId;
use hashbrown::HashMap;

use super::{Shown, jwt::Identity};

/// Bounded in number and time.
pub(super) struct Cache {
    ttl: Duration,
    entries_max: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_token: HashMap<Shown, (Instant, Identity)>,
    /// Oldest first; one for each entry, and some of entries that are gone.
    order: VecDeque<(Instant, Shown)>,
}

impl Cache {
    pub(super) fn new(ttl: Duration, entries_max: usize) -> Self {
        Self { ttl, entries_max, entries: Mutex::default() }
    }

    pub(super) fn get(&self, shown: &Shown, now: Instant) -> Option<Identity> {
        let entries = self.lock();
        let (since, identity) = entries.by_token.get(shown)?;
        (now.saturating_duration_since(*since) < self.ttl).then(|| identity.clone())
    }

    pub(super) fn put(&self, shown: Shown, identity: Identity, now: Instant) {
        if self.entries_max == 0 || self.ttl.is_zero() {
            return;
        }
        let mut entries = self.lock();
        entries.by_token.insert(shown, (now, identity));
        entries.order.push_back((now, shown));
        while let Some((since, oldest)) = entries.order.front().copied() {
            let is_over = now.saturating_duration_since(since) >= self.ttl;
            if !is_over && entries.order.len() <= self.entries_max {
                break;
            }
            entries.order.pop_front();
            if entries.by_token.get(&oldest).is_some_and(|(known, _)| *known == since) {
                entries.by_token.remove(&oldest);
            }
        }
    }

    /// All of one user; looks at every entry.
    pub(super) fn forget(&self, user: UserId) {
        let is_other = |identity: &Identity| identity.user != super::Subject::Id(user);
        self.lock().by_token.retain(|_, (_, identity)| is_other(identity));
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let entries = self.lock();
        (entries.by_token.len(), entries.order.len())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use gimbal_codec::DeviceId;

    use super::*;
    use crate::clock;

    fn shown(n: u8) -> Shown {
        Shown { user: UserId::new(u64::from(n)), device: DeviceId::new(1), token: [n; 32] }
    }

    fn identity(n: u8) -> Identity {
        let user = super::super::Subject::Id(UserId::new(u64::from(n)));
        Identity { user, device: None, issued_at_ms: 0, expires_at_ms: i64::MAX }
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_no_longer() {
        let cache = Cache::new(Duration::from_secs(10), 100);
        let start = clock::now();
        cache.put(shown(1), identity(1), start);
        assert_eq!(cache.get(&shown(1), start + Duration::from_secs(9)), Some(identity(1)));
        assert_eq!(cache.get(&shown(1), start + Duration::from_secs(10)), None);
        assert_eq!(cache.get(&Shown { token: [9; 32], ..shown(1) }, start), None, "another token");
        assert_eq!(cache.get(&Shown { device: DeviceId::new(2), ..shown(1) }, start), None);
        cache.forget(UserId::new(1));
        assert_eq!(cache.get(&shown(1), start), None);
    }

    #[test]
    fn entries_are_bounded_and_the_oldest_gives_way() {
        let cache = Cache::new(Duration::from_secs(10), 3);
        let start = clock::now();
        for n in 0..100 {
            cache.put(shown(n), identity(n), start);
        }
        assert_eq!(cache.len(), (3, 3));
        assert!(cache.get(&shown(99), start).is_some() && cache.get(&shown(96), start).is_none());
        for _ in 0..100 {
            cache.put(shown(99), identity(99), start + Duration::from_secs(1));
        }
        assert!(cache.len().1 <= 3, "one token again and again takes no more");
        cache.put(shown(1), identity(1), start + Duration::from_secs(30));
        assert_eq!(cache.len(), (1, 1), "what is over is gone");
        let off = Cache::new(Duration::ZERO, 3);
        off.put(shown(1), identity(1), start);
        assert_eq!(off.len(), (0, 0));
    }
}
