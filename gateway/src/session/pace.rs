//! How often a session may do what costs others.

use super::Moment;

/// A bound on the rate of one thing, with a burst. The generic cell rate algorithm (ITU-T I.371, annex A).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pace {
    /// Microseconds between two at the sustained rate; 0: unlimited.
    interval_us: u32,
    /// Microseconds' worth of them that may come at once.
    window_us: u32,
}

impl Pace {
    /// `per_second` (0: unlimited; at most 1,000,000) sustained, `burst` (1 to 1,000) at once.
    pub(crate) const fn new(per_second: u32, burst: u32) -> Self {
        match 1_000_000u32.checked_div(per_second) {
            None => Self { interval_us: 0, window_us: 0 },
            Some(interval_us) => Self { interval_us, window_us: interval_us * burst },
        }
    }
}

/// Where one session stands against a [`Pace`]: when the room it used up is regained, in microseconds modulo 2^32. A value
/// from an earlier round of the clock (71 minutes) can only take some of a burst away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used(u32);

impl Used {
    /// Nothing is used.
    pub(super) fn new(now: Moment) -> Self {
        Self(micros(now))
    }

    /// `false`: too many.
    pub(super) fn take(&mut self, now: Moment, pace: Pace) -> bool {
        let now = micros(now);
        let ahead = self.0.wrapping_sub(now);
        let ahead = if ahead > pace.window_us { 0 } else { ahead };
        if ahead + pace.interval_us > pace.window_us {
            return false;
        }
        self.0 = now.wrapping_add(ahead + pace.interval_us);
        true
    }
}

fn micros(now: Moment) -> u32 {
    now.as_ms().wrapping_mul(1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(used: &mut Used, now: Moment, pace: Pace) -> u32 {
        (0..10_000).map(|_| u32::from(used.take(now, pace))).sum()
    }

    #[test]
    fn a_burst_and_then_the_rate_over_every_round_of_the_clock() {
        let pace = Pace::new(50, 100);
        for start_ms in [0, 4_294_967, 4_294_966, u64::from(u32::MAX)] {
            let mut used = Used::new(Moment::from_ms(start_ms));
            assert_eq!(take_all(&mut used, Moment::from_ms(start_ms), pace), 100);
            assert_eq!(take_all(&mut used, Moment::from_ms(start_ms + 19), pace), 0);
            for ms in (20..2000).step_by(20) {
                assert_eq!(take_all(&mut used, Moment::from_ms(start_ms + ms), pace), 1, "{ms}");
            }
            assert_eq!(take_all(&mut used, Moment::from_ms(start_ms + 60_000), pace), 100);
        }
    }

    #[test]
    fn without_a_rate_all_are_admitted() {
        let mut used = Used::new(Moment::default());
        assert_eq!(take_all(&mut used, Moment::default(), Pace::new(0, 1)), 10_000);
        assert_eq!(take_all(&mut used, Moment::default(), Pace::new(1, 1000)), 1000);
    }
}
