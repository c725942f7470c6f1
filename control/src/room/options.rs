//! What may be done in a room: the same for all, or by ranges of room ids.

use gimbal_codec::RoomId;

/// Settings of one room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Members may publish.
    pub members_publish: bool,
    /// How often all of them together.
    pub publishes: Pace,
}

impl Default for Options {
    /// Only backends publish.
    fn default() -> Self {
        Self { members_publish: false, publishes: Pace::new(0, 1) }
    }
}

/// Settings of all rooms.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OptionTable {
    others: Options,
    /// First and last room, by rising first; none overlaps another.
    ranges: Vec<(RoomId, RoomId, Options)>,
}

impl OptionTable {
    /// `ranges` in any order; none overlaps another. `others` is for all rooms in none of them.
    pub fn new(others: Options, mut ranges: Vec<(RoomId, RoomId, Options)>) -> Self {
        ranges.sort_unstable_by_key(|(first, ..)| *first);
        Self { others, ranges }
    }

    /// Of one room.
    pub fn of(&self, room: RoomId) -> &Options {
        let after = self.ranges.partition_point(|(first, ..)| *first <= room);
        match after.checked_sub(1).map(|at| &self.ranges[at]) {
            Some((_, last, options)) if room <= *last => options,
            _ => &self.others,
        }
    }
}

/// A bound on a rate, with a burst: the generic cell rate algorithm (ITU-T I.371, annex A).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Microseconds between two at the sustained rate; 0: unlimited.
    interval_us: i64,
    /// Microseconds' worth of them that may come at once.
    window_us: i64,
}

impl Pace {
    /// `per_second` (0: unlimited; at most 1,000,000) sustained, `burst` (1 to 1,000) at once.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        match 1_000_000_i64.checked_div(per_second as i64) {
            None => Self { interval_us: 0, window_us: 0 },
            Some(interval_us) => Self { interval_us, window_us: interval_us * burst as i64 },
        }
    }

    /// Counts one more, if it is within the bound. `used_us`: when all that was used is regained, Unix microseconds. A clock
    /// that was set back gives all of the burst anew.
    pub(super) fn take(self, used_us: &mut i64, now_ms: i64) -> bool {
        let now_us = now_ms.saturating_mul(1000);
        let ahead = used_us.saturating_sub(now_us);
        let ahead = if (0..=self.window_us).contains(&ahead) { ahead } else { 0 };
        if ahead + self.interval_us > self.window_us {
            return false;
        }
        *used_us = now_us.saturating_add(ahead + self.interval_us);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(pace: Pace, used_us: &mut i64, now_ms: i64) -> usize {
        (0..1000).filter(|_| pace.take(used_us, now_ms)).count()
    }

    #[test]
    fn a_burst_and_then_the_rate_also_after_the_clock_was_set_back() {
        let (pace, mut used) = (Pace::new(50, 100), 0);
        assert_eq!(take_all(pace, &mut used, 1_000_000), 100);
        assert_eq!(take_all(pace, &mut used, 1_000_019), 0);
        assert_eq!(take_all(pace, &mut used, 1_000_020), 1);
        assert_eq!(take_all(pace, &mut used, 1_001_020), 50);
        assert_eq!(take_all(pace, &mut used, 5), 100);
        assert_eq!(take_all(Pace::new(0, 1), &mut used, 5), 1000);
    }

    #[test]
    fn a_room_has_the_settings_of_its_range() {
        let open = Options { members_publish: true, ..Options::default() };
        let range = |first, last| (RoomId::new(first), RoomId::new(last), open);
        let table = OptionTable::new(Options::default(), vec![range(100, 100), range(1, 9)]);
        let is_open = |room| table.of(RoomId::new(room)).members_publish;
        assert_eq!([1, 9, 100].map(is_open), [true; 3]);
        assert_eq!([0, 10, 99, 101, u64::MAX].map(is_open), [false; 5]);
    }
}
