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

/// Steps of a second in which a [`Level`] counts: 25 us each, so that 32 bits go around once in 29 hours, later than any
/// session may be silent.
const STEPS_PER_SECOND: u64 = 40_000;

/// A bound on the flow of something, with a burst, and what becomes of it beyond: up to as much again it is throttled, then
/// shed, then it ends the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    /// Steps for 65,536 of them.
    steps: u64,
    /// Steps' worth of them that may come at once; 0: unlimited.
    window: u32,
}

/// What becomes of something that flows, from good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Verdict {
    /// Within the bound.
    Fine,
    /// Beyond it: calls are refused.
    Throttle,
    /// Far beyond it: nothing is done, nothing is answered.
    Shed,
    /// A flood.
    End,
}

impl Flow {
    /// `per_second` (0: unlimited) sustained, and as many as flow in `burst_seconds` at once.
    pub(crate) fn new(per_second: u64, burst_seconds: u8) -> Self {
        match per_second {
            0 => Self { steps: 0, window: 0 },
            _ => Self {
                steps: (STEPS_PER_SECOND << 16).div_ceil(per_second),
                window: STEPS_PER_SECOND as u32 * u32::from(burst_seconds),
            },
        }
    }

    /// From the end of a connection until all that flowed is made up for.
    pub(super) fn debt_ms(self) -> u64 {
        3 * u64::from(self.window) * 1000 / STEPS_PER_SECOND
    }

    fn cost(self, count: usize) -> u32 {
        let steps = (self.steps * count as u64).div_ceil(1 << 16);
        u32::try_from(steps).unwrap_or(u32::MAX)
    }
}

/// Where one session stands against a [`Flow`]: when all that flowed is made up for, in steps modulo 2^32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level(u32);

impl Level {
    /// Nothing has flowed.
    pub(super) fn new(now: Moment) -> Self {
        Self(steps(now))
    }

    /// Adds `count`.
    pub(super) fn add(&mut self, count: usize, now: Moment, flow: Flow) -> Verdict {
        if flow.window == 0 {
            return Verdict::Fine;
        }
        let now = steps(now);
        // What is past looks far ahead.
        let full = 3 * flow.window + 1;
        let ahead = self.0.wrapping_sub(now);
        let ahead = if ahead > full { 0 } else { ahead };
        // One thing alone is never too much, however large.
        let ahead = match ahead {
            0 => flow.cost(count).min(flow.window),
            _ => ahead.saturating_add(flow.cost(count)).min(full),
        };
        self.0 = now.wrapping_add(ahead);
        match ahead.div_ceil(flow.window) {
            0 | 1 => Verdict::Fine,
            2 => Verdict::Throttle,
            3 => Verdict::Shed,
            _ => Verdict::End,
        }
    }
}

fn steps(now: Moment) -> u32 {
    now.as_ms().wrapping_mul(STEPS_PER_SECOND / 1000) as u32
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

    /// How many of a flood get each verdict.
    fn verdicts(level: &mut Level, count: usize, each: usize, now: Moment, flow: Flow) -> [usize; 4] {
        let mut counts = [0; 4];
        (0..count).for_each(|_| counts[level.add(each, now, flow) as usize] += 1);
        counts
    }

    #[test]
    fn a_flood_is_throttled_then_shed_then_ended_and_a_flow_within_the_rate_is_not() {
        let flow = Flow::new(500, 2);
        for start_ms in [0, 107_374_182, u64::from(u32::MAX)] {
            let start = Moment::from_ms(start_ms);
            let mut level = Level::new(start);
            assert_eq!(verdicts(&mut level, 4000, 1, start, flow), [1000, 1000, 1000, 1000]);
            let mut level = Level::new(start);
            for ms in (0..60_000).step_by(2) {
                assert_eq!(level.add(1, start.plus_ms(ms), flow), Verdict::Fine, "{ms}");
            }
        }
    }

    #[test]
    fn who_slows_down_is_fine_again_and_silence_of_a_day_is_no_debt() {
        let flow = Flow::new(1000, 1);
        let mut level = Level::new(Moment::default());
        assert_eq!(verdicts(&mut level, 1500, 1, Moment::default(), flow), [1000, 500, 0, 0]);
        assert_eq!(level.add(1, Moment::from_ms(400), flow), Verdict::Throttle);
        assert_eq!(level.add(1, Moment::from_ms(600), flow), Verdict::Fine);
        for hours in 1..=24 {
            let mut level = Level::new(Moment::default());
            verdicts(&mut level, 1500, 1, Moment::default(), flow);
            assert_eq!(level.add(1, Moment::from_ms(hours * 3_600_000), flow), Verdict::Fine, "{hours}");
        }
    }

    #[test]
    fn bytes_flow_at_their_rate_and_the_largest_frame_alone_is_no_flood() {
        let flow = Flow::new(1 << 20, 4);
        let mut level = Level::new(Moment::default());
        let [fine, throttled, ..] = verdicts(&mut level, 128, 65_536, Moment::default(), flow);
        assert_eq!((fine, throttled), (64, 64));
        let mut level = Level::new(Moment::default());
        assert_eq!(level.add(65_536, Moment::default(), Flow::new(1024, 1)), Verdict::Fine);
        let mut open = Level::new(Moment::default());
        assert_eq!(verdicts(&mut open, 1000, 1 << 20, Moment::default(), Flow::new(0, 1)), [1000, 0, 0, 0]);
    }
}
