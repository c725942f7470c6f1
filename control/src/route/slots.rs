//! A table that only grows, in chunks that never move: growth copies nothing, and leaves no old copies to the allocator,
//! which with a doubling vector were as much memory again as the table.

use std::ops::{Index, IndexMut};

/// Entries allocated at a time.
const CHUNK_ENTRIES: usize = 1024;

/// Entries by index.
#[derive(Debug)]
pub(super) struct Slots<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK_ENTRIES + last.len())
    }

    pub(super) fn push(&mut self, entry: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_ENTRIES => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_ENTRIES);
                chunk.push(entry);
                self.chunks.push(chunk);
            }
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK_ENTRIES)?.get(index % CHUNK_ENTRIES)
    }

    /// All from `start` on with their indices.
    pub(super) fn iter_from(&self, start: usize) -> impl Iterator<Item = (usize, &T)> {
        (start..self.len()).map(|index| (index, &self[index]))
    }
}

impl<T> Index<usize> for Slots<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK_ENTRIES][index % CHUNK_ENTRIES]
    }
}

impl<T> IndexMut<usize> for Slots<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / CHUNK_ENTRIES][index % CHUNK_ENTRIES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_where_they_are_while_the_table_grows() {
        let mut slots = Slots::new();
        assert!(slots.len() == 0 && slots.get(0).is_none());
        slots.push(0);
        let first: *const usize = &slots[0];
        (1..3 * CHUNK_ENTRIES).for_each(|n| slots.push(n));
        assert!(std::ptr::eq(first, &slots[0]));
        slots[CHUNK_ENTRIES] = 7;
        assert_eq!((slots[CHUNK_ENTRIES], slots.get(3 * CHUNK_ENTRIES)), (7, None));
        let tail: Vec<_> = slots.iter_from(3 * CHUNK_ENTRIES - 2).collect();
        assert_eq!(tail, [(3070, &3070), (3071, &3071)]);
        assert_eq!(slots.len(), 3 * CHUNK_ENTRIES);
    }
}
