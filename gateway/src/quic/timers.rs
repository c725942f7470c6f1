//! When each connection's state machine wants to be woken. Deadlines move with nearly every packet, and most are moved before
//! they are due.

use std::collections::BTreeSet;
use std::time::Instant;

/// One deadline for each of many things, which remember their own.
#[derive(Debug)]
pub(super) struct Timers<T> {
    due: BTreeSet<(Instant, T)>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { due: BTreeSet::new() }
    }
}

impl<T: Ord + Copy> Timers<T> {
    /// Moves the deadline of `who` from `before`, which is updated.
    pub(super) fn set(&mut self, who: T, before: &mut Option<Instant>, at: Option<Instant>) {
        if *before == at {
            return;
        }
        if let Some(before) = *before {
            self.due.remove(&(before, who));
        }
        if let Some(at) = at {
            self.due.insert((at, who));
        }
        *before = at;
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Somebody whose deadline is over; it stays until it is moved.
    pub(super) fn due(&self, now: Instant) -> Option<T> {
        self.due.first().filter(|(at, _)| *at <= now).map(|(_, who)| *who)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to an instant")]
    fn deadlines_come_in_order_wherever_they_are_moved() {
        let start = Instant::now();
        let at = |ms| Some(start + Duration::from_millis(ms));
        let mut timers = Timers::default();
        let (mut one, mut two) = (None, None);
        timers.set(1, &mut one, at(20));
        timers.set(2, &mut two, at(10));
        assert_eq!((timers.next(), timers.due(start)), (at(10), None));
        timers.set(2, &mut two, at(30));
        assert_eq!(timers.due(start + Duration::from_millis(20)), Some(1));
        timers.set(1, &mut one, None);
        assert_eq!((timers.next(), one), (at(30), None));
        timers.set(2, &mut two, None);
        assert_eq!(timers.next(), None);
    }
}
