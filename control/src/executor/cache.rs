//! A bounded cache in two generations: what is used moves to the young one; when that is full, it becomes the old one
//! and the former old one is forgotten. A bound without a list to maintain.

use std::hash::Hash;

use hashbrown::HashMap;

/// At most twice `generation_max` entries after [`Cache::rotate`].
pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation_max: usize,
}

impl<K: Copy + Eq + Hash, V: Copy> Cache<K, V> {
    pub(crate) fn new(generation_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation_max }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        if let Some(value) = self.young.get(&key) {
            return Some(*value);
        }
        let value = self.old.remove(&key)?;
        self.young.insert(key, value);
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.young.insert(key, value);
    }

    /// Forgets the oldest when there are too many. Between batches only: within one, what it changed must stay.
    pub(crate) fn rotate(&mut self) {
        if self.young.len() >= self.generation_max {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut cache = Cache::new(2);
        cache.insert(1, 'a');
        cache.insert(2, 'b');
        cache.rotate();
        assert_eq!(cache.get(1), Some('a'));
        cache.insert(3, 'c');
        cache.rotate();
        assert_eq!((cache.get(1), cache.get(2), cache.get(3)), (Some('a'), None, Some('c')));
    }

    #[test]
    fn the_newest_value_wins_over_one_of_the_old_generation() {
        let mut cache = Cache::new(1);
        cache.insert(1, 'a');
        cache.rotate();
        cache.insert(1, 'b');
        assert_eq!(cache.get(1), Some('b'));
        cache.rotate();
        assert_eq!(cache.get(1), Some('b'));
    }
}
