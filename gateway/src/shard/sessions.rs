//! Slots with generations: a stale key finds nobody. What a slot holds is the shard's own.

use gimbal_codec::{SessionKey, ShardId};

/// Slots are allocated so many at a time and never move, so growth copies nothing and doubles nothing.
const CHUNK_SLOTS: usize = 256;

/// End of the list of free slots.
const NO_SLOT: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<T> {
    /// Of the session in the slot, or of the next one to come.
    generation: u32,
    state: SlotState<T>,
}

#[derive(Debug)]
enum SlotState<T> {
    Free { next: u32 },
    Taken(T),
}

/// The sessions of one shard.
#[derive(Debug)]
pub(crate) struct Sessions<T> {
    shard: ShardId,
    chunks: Vec<Vec<Slot<T>>>,
    first_free: u32,
    count: u32,
    count_max: u32,
}

impl<T> Sessions<T> {
    /// An empty table of `shard` for at most `count_max` sessions (capped by what a key can name: 2^24).
    pub(crate) fn new(shard: ShardId, count_max: u32) -> Self {
        let count_max = count_max.min(SessionKey::INDEX_MAX + 1);
        Self { shard, chunks: Vec::new(), first_free: NO_SLOT, count: 0, count_max }
    }

    /// All slots are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.count >= self.count_max
    }

    /// Takes a slot for what `make` builds from its key; `None` when all slots are taken.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(SessionKey) -> T) -> Option<SessionKey> {
        if self.is_full() {
            return None;
        }
        let index = if self.first_free == NO_SLOT { self.grow() } else { self.first_free };
        let shard = self.shard;
        let slot = self.slot_mut(index)?;
        let key = SessionKey::new(shard, index, slot.generation);
        let SlotState::Free { next } = slot.state else {
            unreachable!("slot {index} of the free list is taken")
        };
        slot.state = SlotState::Taken(make(key));
        self.first_free = next;
        self.count += 1;
        Some(key)
    }

    /// The session with this very key.
    pub(crate) fn get(&self, key: SessionKey) -> Option<&T> {
        let slot = self.slot(key.index())?;
        match &slot.state {
            SlotState::Taken(value) if slot.generation == key.generation() && key.shard() == self.shard => {
                Some(value)
            }
            _ => None,
        }
    }

    /// The session with this very key.
    pub(crate) fn get_mut(&mut self, key: SessionKey) -> Option<&mut T> {
        let shard = self.shard;
        let slot = self.slot_mut(key.index())?;
        match &mut slot.state {
            SlotState::Taken(value) if slot.generation == key.generation() && key.shard() == shard => {
                Some(value)
            }
            _ => None,
        }
    }

    /// Frees the slot; from here on `key` finds nobody.
    pub(crate) fn remove(&mut self, key: SessionKey) -> Option<T> {
        self.get(key)?;
        let next = self.first_free;
        let slot = self.slot_mut(key.index())?;
        let SlotState::Taken(value) = std::mem::replace(&mut slot.state, SlotState::Free { next }) else {
            return None;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.first_free = key.index();
        self.count -= 1;
        Some(value)
    }

    /// The key of whoever is in slot `index` now.
    pub(crate) fn key_at(&self, index: u32) -> Option<SessionKey> {
        let slot = self.slot(index)?;
        match slot.state {
            SlotState::Taken(_) => Some(SessionKey::new(self.shard, index, slot.generation)),
            SlotState::Free { .. } => None,
        }
    }

    /// Slots ever used: indices below this may be taken. For walks that are spread over turns.
    pub(crate) fn index_end(&self) -> u32 {
        match self.chunks.last() {
            Some(last) => to_index((self.chunks.len() - 1) * CHUNK_SLOTS + last.len()),
            None => 0,
        }
    }

    /// Sessions now.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Adds one free slot and returns its index.
    fn grow(&mut self) -> u32 {
        let index = self.index_end();
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK_SLOTS) {
            self.chunks.push(Vec::with_capacity(CHUNK_SLOTS));
        }
        let last = self.chunks.last_mut().expect("a chunk was pushed when there was none");
        last.push(Slot { generation: 1, state: SlotState::Free { next: NO_SLOT } });
        index
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        self.chunks.get(index as usize / CHUNK_SLOTS)?.get(index as usize % CHUNK_SLOTS)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.chunks.get_mut(index as usize / CHUNK_SLOTS)?.get_mut(index as usize % CHUNK_SLOTS)
    }
}

fn to_index(index: usize) -> u32 {
    u32::try_from(index).expect("at most 2^24 slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count_max: u32) -> Sessions<u32> {
        Sessions::new(ShardId(3), count_max)
    }

    #[test]
    fn a_stale_key_finds_nobody() {
        let mut sessions = table(10);
        let old = sessions.insert_with(|_| 1).unwrap();
        assert_eq!(sessions.remove(old), Some(1));
        let new = sessions.insert_with(|_| 2).unwrap();
        assert_eq!(new.index(), old.index());
        assert_eq!(sessions.get(old), None);
        assert_eq!(sessions.get_mut(old), None);
        assert_eq!(sessions.remove(old), None);
        assert_eq!(sessions.get(new), Some(&2));
    }

    #[test]
    fn a_key_of_another_shard_finds_nobody() {
        let mut sessions = table(10);
        let key = sessions.insert_with(|_| 1).unwrap();
        let other = SessionKey::new(ShardId(4), key.index(), key.generation());
        assert_eq!(sessions.get(other), None);
        assert_eq!(sessions.get_mut(other), None);
    }

    #[test]
    fn slots_are_bounded_reused_and_walked_in_order() {
        let mut sessions = table(600);
        let keys: Vec<_> = (0..600).map(|n| sessions.insert_with(|_| n).unwrap()).collect();
        assert_eq!(sessions.insert_with(|_| 0), None);
        assert_eq!((sessions.count(), sessions.index_end()), (600, 600));
        for key in keys.iter().step_by(2) {
            sessions.remove(*key).unwrap();
        }
        let left: Vec<_> = (0..sessions.index_end()).filter_map(|index| sessions.key_at(index)).collect();
        assert_eq!(left, keys.iter().copied().skip(1).step_by(2).collect::<Vec<_>>());
        assert_eq!(
            (sessions.key_at(0), sessions.key_at(1), sessions.key_at(9999)),
            (None, Some(keys[1]), None)
        );
        for n in 0..300 {
            let key = sessions.insert_with(|key| key.index()).unwrap();
            assert_eq!(sessions.get(key), Some(&key.index()), "{n}");
        }
        assert_eq!((sessions.insert_with(|_| 0), sessions.index_end()), (None, 600));
    }
}
