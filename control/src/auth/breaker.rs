//! Leaves a service alone that does not answer, and tries it with one call at a time until it does.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// After so many failures in a row, a pause; after it one call tries.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// So many failures in a row.
    Closed(u32),
    /// Nobody calls before this.
    Open(Instant),
    /// One call is under way; should it never end, another one tries at this time.
    Trying(Instant),
}

impl Breaker {
    pub(super) fn new(failures_max: u32, pause: Duration) -> Self {
        Self { failures_max, pause, state: Mutex::new(State::Closed(0)) }
    }

    /// Whether a call may be made now. Its end must be told.
    pub(super) fn may_call(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match *state {
            State::Closed(_) => true,
            State::Open(until) | State::Trying(until) if now < until => false,
            State::Open(_) | State::Trying(_) => {
                *state = State::Trying(now + self.pause);
                true
            }
        }
    }

    /// The service answered, whatever it said.
    pub(super) fn answered(&self) {
        *self.lock() = State::Closed(0);
    }

    /// It did not. True: it is left alone from now on.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let failures = match *state {
            State::Closed(failures) => failures + 1,
            // Calls from before the pause change nothing.
            State::Open(_) => return false,
            State::Trying(_) => self.failures_max,
        };
        let opens = failures >= self.failures_max;
        *state = if opens { State::Open(now + self.pause) } else { State::Closed(failures) };
        opens
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.lock(), State::Closed(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_silent_service_is_left_alone_and_tried_by_one_call_at_a_time() {
        let pause = Duration::from_secs(5);
        let breaker = Breaker::new(3, pause);
        let start = clock::now();
        assert!(!breaker.failed(start) && !breaker.failed(start));
        breaker.answered();
        assert!(!breaker.failed(start) && !breaker.failed(start), "only failures in a row count");
        assert!(breaker.may_call(start));
        assert!(breaker.failed(start) && breaker.is_open());
        assert!(!breaker.may_call(start + pause - Duration::from_millis(1)));
        assert!(!breaker.failed(start), "a late failure does not begin the pause anew");
        let later = start + pause;
        assert!(breaker.may_call(later), "one tries");
        assert!(!breaker.may_call(later), "and no other beside it");
        assert!(breaker.failed(later) && !breaker.may_call(later + pause / 2), "it failed: another pause");
        assert!(breaker.may_call(later + pause));
        assert!(breaker.may_call(later + pause * 2), "a try that never ended blocks nobody for ever");
        breaker.answered();
        assert!(!breaker.is_open() && breaker.may_call(later) && breaker.may_call(later));
    }
}
