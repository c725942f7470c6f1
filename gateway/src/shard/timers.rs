//! One deadline per connection on a hashed wheel: O(1), 12 bytes a connection.
//!
//! Deadlines mostly move away, with every frame. The wheel therefore moves an entry only when its deadline comes nearer;
//! an entry that fires too early is armed again for what its session says then.

use crate::session::Moment;

/// Resolution. Deadlines are seconds; coarser ticks mean fewer wakeups.
const TICK_MS: u64 = 64;
/// Ticks of one revolution: 17 minutes, more than the default idle limit. A later deadline fires early and is armed again.
const WHEEL_TICKS: usize = 1 << 14;
/// Entries are allocated so many at a time and never move.
const CHUNK_ENTRIES: usize = 1024;
/// No entry, end of a list.
const NONE: u32 = u32::MAX;
/// Tick of an entry that is on no list.
const UNARMED: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    next: u32,
    previous: u32,
    tick: u32,
}

/// The deadlines of one shard, by slot index.
#[derive(Debug)]
pub(crate) struct Timers {
    chunks: Vec<Vec<Entry>>,
    /// First entry of each tick's list.
    heads: Box<[u32]>,
    /// One bit for each list that is not empty.
    occupied: Box<[u64]>,
    /// First tick that is not wholly expired. All entries are in `next_tick..next_tick + WHEEL_TICKS`, so that a list
    /// holds entries of one tick only.
    next_tick: u32,
    armed_count: u32,
}

impl Timers {
    /// An empty wheel that starts at `now`.
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            chunks: Vec::new(),
            heads: vec![NONE; WHEEL_TICKS].into(),
            occupied: vec![0; WHEEL_TICKS / 64].into(),
            next_tick: tick_before(now),
            armed_count: 0,
        }
    }

    /// Sees to it that `index` fires at `deadline` at the latest (and one tick), and not before it is first due.
    /// Cheap when the deadline moved away. [`Moment::NEVER`] leaves an armed entry as it is.
    pub(crate) fn arm(&mut self, index: u32, deadline: Moment) {
        if deadline == Moment::NEVER {
            return;
        }
        let farthest = self.next_tick + (WHEEL_TICKS as u32 - 1);
        let tick = tick_after(deadline).clamp(self.next_tick, farthest);
        self.ensure(index);
        // An unarmed entry has the highest tick of all.
        if self.entry(index).tick > tick {
            self.cancel(index);
            self.link(index, tick);
        }
    }

    /// Forgets `index`; also when it was never armed.
    pub(crate) fn cancel(&mut self, index: u32) {
        let is_known = (index as usize) < self.chunks.len() * CHUNK_ENTRIES;
        if is_known && self.entry(index).tick != UNARMED {
            self.unlink(index);
        }
    }

    /// Moves at most `count_max` due indices to `out`; they are no longer armed. The rest stay due.
    pub(crate) fn expire(&mut self, now: Moment, count_max: usize, out: &mut Vec<u32>) {
        let last_tick = tick_before(now);
        let mut room = count_max;
        while self.next_tick <= last_tick {
            let Some(tick) = self.first_occupied().filter(|&tick| tick <= last_tick) else {
                self.next_tick = last_tick + 1;
                return;
            };
            self.next_tick = tick;
            while let index = self.heads[slot_of(tick)]
                && index != NONE
            {
                if room == 0 {
                    return;
                }
                room -= 1;
                self.unlink(index);
                out.push(index);
            }
        }
    }

    /// The first tick with an entry, from `next_tick` once around.
    fn first_occupied(&self) -> Option<u32> {
        if self.armed_count == 0 {
            return None;
        }
        let start = slot_of(self.next_tick);
        let words = self.occupied.len();
        for step in 0..=words {
            let word_index = (start / 64 + step) % words;
            let mut word = self.occupied[word_index];
            if step == 0 {
                word &= u64::MAX << (start % 64);
            }
            if word != 0 {
                let slot = word_index * 64 + word.trailing_zeros() as usize;
                let ahead = (slot + WHEEL_TICKS - start) % WHEEL_TICKS;
                return Some(self.next_tick + ahead as u32);
            }
        }
        None
    }

    fn ensure(&mut self, index: u32) {
        while self.chunks.len() * CHUNK_ENTRIES <= index as usize {
            let unarmed = Entry { next: NONE, previous: NONE, tick: UNARMED };
            self.chunks.push(vec![unarmed; CHUNK_ENTRIES]);
        }
    }

    fn link(&mut self, index: u32, tick: u32) {
        let slot = slot_of(tick);
        let next = self.heads[slot];
        if next != NONE {
            self.entry_mut(next).previous = index;
        }
        *self.entry_mut(index) = Entry { next, previous: NONE, tick };
        self.heads[slot] = index;
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.armed_count += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { next, previous, tick } = *self.entry(index);
        let slot = slot_of(tick);
        if next != NONE {
            self.entry_mut(next).previous = previous;
        }
        if previous != NONE {
            self.entry_mut(previous).next = next;
        } else {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.entry_mut(index).tick = UNARMED;
        self.armed_count -= 1;
    }

    fn entry(&self, index: u32) -> &Entry {
        &self.chunks[index as usize / CHUNK_ENTRIES][index as usize % CHUNK_ENTRIES]
    }

    fn entry_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.chunks[index as usize / CHUNK_ENTRIES][index as usize % CHUNK_ENTRIES]
    }
}

fn slot_of(tick: u32) -> usize {
    tick as usize % WHEEL_TICKS
}

/// The last tick that `now` has reached.
fn tick_before(now: Moment) -> u32 {
    to_tick(now.as_ms() / TICK_MS)
}

/// The first tick that is not before `deadline`.
fn tick_after(deadline: Moment) -> u32 {
    to_tick(deadline.as_ms().div_ceil(TICK_MS))
}

/// Capped far below [`UNARMED`]: eight years after the gateway's start.
fn to_tick(tick: u64) -> u32 {
    const TICK_MAX: u32 = u32::MAX - 2 * WHEEL_TICKS as u32;
    u32::try_from(tick).map_or(TICK_MAX, |tick| tick.min(TICK_MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// When the first entry fires.
    fn next_due(timers: &Timers) -> Option<Moment> {
        timers.first_occupied().map(|tick| Moment::from_ms(u64::from(tick) * TICK_MS))
    }

    fn expired(timers: &mut Timers, now_ms: u64) -> Vec<u32> {
        let mut out = Vec::new();
        timers.expire(Moment::from_ms(now_ms), usize::MAX, &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn an_entry_costs_twelve_bytes() {
        assert_eq!(std::mem::size_of::<Entry>(), 12);
    }

    #[test]
    fn a_deadline_that_moves_away_leaves_the_entry_and_one_that_comes_nearer_moves_it() {
        let mut timers = Timers::new(Moment::default());
        timers.arm(3, Moment::from_ms(1000));
        timers.arm(3, Moment::from_ms(5000));
        assert_eq!(next_due(&timers), Some(Moment::from_ms(1024)));
        timers.arm(3, Moment::from_ms(100));
        assert_eq!((next_due(&timers), timers.armed_count), (Some(Moment::from_ms(128)), 1));
        assert_eq!(expired(&mut timers, 127), []);
        assert_eq!(expired(&mut timers, 128), [3]);
        assert_eq!((next_due(&timers), timers.armed_count), (None, 0));
    }

    #[test]
    fn a_budget_leaves_the_rest_due() {
        let mut timers = Timers::new(Moment::default());
        (0..10).for_each(|index| timers.arm(index, Moment::from_ms(64)));
        let mut out = Vec::new();
        timers.expire(Moment::from_ms(1_000_000), 4, &mut out);
        assert_eq!(out.len(), 4);
        timers.arm(99, Moment::from_ms(1));
        timers.cancel(99);
        timers.cancel(100_000);
        timers.expire(Moment::from_ms(1_000_000), 40, &mut out);
        out.sort_unstable();
        assert_eq!(out, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_deadline_beyond_the_wheel_fires_early_and_is_armed_again() {
        let mut timers = Timers::new(Moment::default());
        let far = Moment::from_ms(WHEEL_TICKS as u64 * TICK_MS * 3);
        timers.arm(0, far);
        let mut rounds = 0;
        while let Some(due) = next_due(&timers) {
            assert_eq!(expired(&mut timers, due.as_ms()), [0]);
            rounds += 1;
            if due < far {
                timers.arm(0, far);
            }
        }
        assert_eq!(rounds, 4);
    }

    proptest! {
        /// Against a plain map: whatever is due fires, nothing fires before its nearest deadline, no entry is lost.
        #[test]
        fn the_wheel_agrees_with_a_sorted_map(
            steps in prop::collection::vec((0u32..40, 0u64..2_000_000, 0u64..200_000, 0u8..4), 1..200),
        ) {
            let mut timers = Timers::new(Moment::default());
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            let mut now_ms = 0;
            for (index, ahead_ms, pass_ms, what) in steps {
                match what {
                    0 | 1 => {
                        let next = timers.next_tick;
                        let tick = tick_after(Moment::from_ms(now_ms + ahead_ms));
                        let tick = tick.clamp(next, next + WHEEL_TICKS as u32 - 1);
                        timers.arm(index, Moment::from_ms(now_ms + ahead_ms));
                        model.entry(index).and_modify(|at| *at = tick.min(*at)).or_insert(tick);
                    }
                    2 => {
                        timers.cancel(index);
                        model.remove(&index);
                    }
                    _ => {
                        now_ms += pass_ms;
                        let reached = (now_ms / TICK_MS) as u32;
                        let due: Vec<u32> =
                            model.iter().filter(|(_, at)| **at <= reached).map(|(index, _)| *index).collect();
                        prop_assert_eq!(expired(&mut timers, now_ms), due);
                        model.retain(|_, at| *at > reached);
                    }
                }
                prop_assert_eq!(timers.armed_count as usize, model.len());
                let first = model.values().min().map(|&tick| Moment::from_ms(u64::from(tick) * TICK_MS));
                prop_assert_eq!(next_due(&timers), first);
            }
        }
    }
}
