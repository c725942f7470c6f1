//! Slots that grow by chunks, so that memory follows the sessions and nothing is copied when they become more.

use std::ops::{Index, IndexMut};

/// Slots of one chunk: some 80 KiB of routes.
const CHUNK: usize = 1024;

pub(super) struct Slots<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// Slots ever made.
    pub(super) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(super) fn push(&mut self, slot: T) {
        if self.len().is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks.last_mut().expect("a chunk with room was just made sure of").push(slot);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_keep_their_number_over_chunks() {
        let mut slots = Slots::new();
        for number in 0..3 * CHUNK + 1 {
            assert_eq!(slots.len(), number);
            slots.push(number);
        }
        slots[CHUNK as u32] = 7;
        assert_eq!((slots[0], slots[CHUNK as u32], slots[3 * CHUNK as u32]), (0, 7, 3 * CHUNK));
        assert_eq!(slots.iter().count(), slots.len());
    }
}
