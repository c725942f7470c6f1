//! Devices that were closed for their rate: until what they sent too much is made up for, they sign in in vain. Else each
//! new connection would bring them a new burst.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gimbal_codec::DeviceId;
use hashbrown::HashMap;

use crate::session::Moment;

/// Devices remembered at once, 16 bytes each: one more is forgotten at once, and admitted like any other.
const DEBTS_MAX: usize = 65_536;

/// Of all shards.
#[derive(Debug, Default)]
pub(crate) struct Debts {
    until: Mutex<HashMap<DeviceId, Moment>>,
    /// So that nobody takes the lock while there are none.
    count: AtomicUsize,
}

impl Debts {
    /// `device` is not to come back for `ms`.
    pub(super) fn note(&self, device: DeviceId, now: Moment, ms: u64) {
        let mut until = self.lock();
        if until.len() >= DEBTS_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() < DEBTS_MAX || until.contains_key(&device) {
            until.insert(device, now.plus_ms(ms));
        }
        self.count.store(until.len(), Ordering::Relaxed);
    }

    /// Milliseconds until `device` may come back; `None`: it may.
    pub(super) fn left_ms(&self, device: DeviceId, now: Moment) -> Option<u64> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut all = self.lock();
        let until = *all.get(&device)?;
        if until > now {
            return Some(until.as_ms() - now.as_ms());
        }
        all.remove(&device);
        self.count.store(all.len(), Ordering::Relaxed);
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Moment>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owes_waits_and_is_forgotten_then() {
        let (debts, device, start) = (Debts::default(), DeviceId::new(7), Moment::from_ms(1000));
        assert_eq!(debts.left_ms(device, start), None);
        debts.note(device, start, 12_000);
        assert_eq!(debts.left_ms(device, start.plus_ms(1)), Some(11_999));
        assert_eq!(debts.left_ms(DeviceId::new(8), start), None);
        assert_eq!(debts.left_ms(device, start.plus_ms(12_000)), None);
        assert_eq!((debts.count.load(Ordering::Relaxed), debts.lock().len()), (0, 0));
    }

    #[test]
    fn no_number_of_devices_makes_it_grow() {
        let (debts, start) = (Debts::default(), Moment::from_ms(0));
        (0..DEBTS_MAX as u64 + 9).for_each(|device| debts.note(DeviceId::new(device), start, 10));
        assert_eq!(debts.lock().len(), DEBTS_MAX);
        debts.note(DeviceId::new(0), start, 99);
        assert_eq!(debts.left_ms(DeviceId::new(0), start.plus_ms(20)), Some(79), "one that is known is");
        debts.note(DeviceId::new(u64::MAX), start.plus_ms(20), 10);
        assert_eq!(debts.lock().len(), 2, "what is over makes room");
    }
}
