//! What may be done in rooms.

use gimbal_codec::RoomId;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::room::options::{OptionTable, Options, Pace};

/// Each publish looks its room's range up; more would be a list of rooms.
const RANGES_MAX: usize = 1000;

/// The `[control.rooms]` table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rooms {
    /// Members may publish. Default false: backends alone.
    pub members_publish: bool,
    /// Publishes of all members of one room per second. Default 100; 0 to 1,000,000, 0: unlimited.
    pub publishes_per_second: u32,
    /// Of these, at once. Default 200; 1 to 1,000.
    pub publishes_burst: u32,
    /// Rooms with other settings; at most 1,000, none overlaps another. Default none.
    pub ranges: Vec<Range>,
}

/// Rooms with other settings; what is absent is as in the table.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First room.
    pub first: u64,
    /// Last room.
    pub last: u64,
    /// As in the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members_publish: Option<bool>,
    /// As in the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes_per_second: Option<u32>,
    /// As in the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes_burst: Option<u32>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { members_publish: false, publishes_per_second: 100, publishes_burst: 200, ranges: Vec::new() }
    }
}

impl Rooms {
    /// The settings of each room.
    pub fn options(&self) -> OptionTable {
        let of = |range: &Range| {
            let options = self.within(range).own();
            (RoomId::new(range.first), RoomId::new(range.last), options)
        };
        OptionTable::new(self.own(), self.ranges.iter().map(of).collect())
    }

    fn own(&self) -> Options {
        Options {
            members_publish: self.members_publish,
            publishes: Pace::new(self.publishes_per_second, self.publishes_burst),
        }
    }

    /// As if the whole table were that of a range.
    fn within(&self, range: &Range) -> Self {
        Self {
            members_publish: range.members_publish.unwrap_or(self.members_publish),
            publishes_per_second: range.publishes_per_second.unwrap_or(self.publishes_per_second),
            publishes_burst: range.publishes_burst.unwrap_or(self.publishes_burst),
            ranges: Vec::new(),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_own()?;
        self.ranges.iter().try_for_each(|range| self.within(range).check_own())?;
        let mut sorted: Vec<(u64, u64)> = self.ranges.iter().map(|range| (range.first, range.last)).collect();
        sorted.sort_unstable();
        let is_range = sorted.iter().all(|(first, last)| (1..=*last).contains(first));
        super::first_broken(&[
            (sorted.len() <= RANGES_MAX, "rooms.ranges", "must be 1,000 at most"),
            (is_range, "rooms.ranges", "must each have a first of 1 or more and a last not below it"),
            (sorted.windows(2).all(|pair| pair[0].1 < pair[1].0), "rooms.ranges", "must not overlap"),
        ])
    }

    fn check_own(&self) -> Result<(), ConfigError> {
        super::first_broken(&[
            (
                self.publishes_per_second <= 1_000_000,
                "rooms.publishes_per_second",
                "must be at most 1,000,000",
            ),
            ((1..=1000).contains(&self.publishes_burst), "rooms.publishes_burst", "must be 1 to 1,000"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last, ..Range::default() }
    }

    fn refusal(rooms: &Rooms) -> String {
        rooms.check().err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn ranges_that_overlap_or_are_none_are_refused() {
        let with = |ranges| Rooms { ranges, ..Rooms::default() };
        assert_eq!(refusal(&with(vec![range(11, 20), range(1, 10)])), "");
        assert_eq!(
            refusal(&with(vec![range(1, 10), range(10, 20)])),
            "control.rooms.ranges must not overlap"
        );
        for (first, last) in [(0, 5), (6, 5)] {
            assert!(refusal(&with(vec![range(first, last)])).contains("not below"), "{first} to {last}");
        }
        let burst = Range { publishes_burst: Some(0), ..range(1, 2) };
        assert!(refusal(&with(vec![burst])).contains("publishes_burst"));
    }

    #[test]
    fn a_range_says_what_differs() {
        let ranges = vec![Range { members_publish: Some(true), ..range(5, 6) }];
        let table = Rooms { ranges, ..Rooms::default() }.options();
        let (inside, outside) = (table.of(RoomId::new(5)), table.of(RoomId::new(4)));
        assert!(inside.members_publish && !outside.members_publish);
        assert_eq!(inside.publishes, outside.publishes);
    }
}
