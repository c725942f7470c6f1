//! Bytes the kernel is reading from: each send in flight keeps its memory here until its completion.

use bytes::Bytes;
use gimbal_codec::SessionKey;

/// All sends in flight, by the index in their `user_data`.
#[derive(Default)]
pub(super) struct Sends {
    slots: Vec<Slot>,
    first_free: Option<u32>,
}

enum Slot {
    Free { next: Option<u32> },
    InFlight { key: SessionKey, _bytes: Bytes },
}

impl Sends {
    /// Keeps `bytes` until [`Self::remove`]; their address does not change when other sends come and go.
    pub(super) fn insert(&mut self, key: SessionKey, bytes: Bytes) -> u32 {
        let taken = Slot::InFlight { key, _bytes: bytes };
        if let Some(index) = self.first_free {
            let Slot::Free { next } = std::mem::replace(&mut self.slots[index as usize], taken) else {
                unreachable!("slot {index} of the free list is in flight")
            };
            self.first_free = next;
            return index;
        }
        self.slots.push(taken);
        u32::try_from(self.slots.len() - 1).expect("one send per connection, connections are below 2^24")
    }

    /// Releases the bytes of a completed send and says whose it was.
    ///
    /// # Panics
    /// When `index` is not in flight: a completion without its operation would be a fault of ours.
    pub(super) fn remove(&mut self, index: u32) -> SessionKey {
        let free = Slot::Free { next: self.first_free };
        let Slot::InFlight { key, .. } = std::mem::replace(&mut self.slots[index as usize], free) else {
            panic!("completion of send {index}, which is not in flight")
        };
        self.first_free = Some(index);
        key
    }

    /// Appends whose sends are in flight.
    pub(super) fn keys(&self, out: &mut Vec<SessionKey>) {
        out.extend(self.slots.iter().filter_map(|slot| match slot {
            Slot::InFlight { key, .. } => Some(*key),
            Slot::Free { .. } => None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_until_their_completion_and_slots_are_reused() {
        let mut sends = Sends::default();
        let keys = [SessionKey::from_u64(1), SessionKey::from_u64(2)];
        let bytes = Bytes::from(vec![7; 100]);
        let first = sends.insert(keys[0], bytes.clone());
        let second = sends.insert(keys[1], Bytes::new());
        assert!(!bytes.is_unique());
        assert_eq!(sends.remove(first), keys[0]);
        assert!(bytes.is_unique());
        assert_eq!(sends.insert(keys[1], Bytes::new()), first);
        assert_eq!((sends.remove(second), sends.remove(first)), (keys[1], keys[1]));
    }
}
