//! Places for calls, of which there may be more or fewer later.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How many are taken.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: AtomicUsize,
}

/// One that is taken; dropping it frees it.
#[derive(Debug)]
pub(super) struct Seat(Arc<Seats>);

impl Seats {
    /// `None`: `max` or more are taken.
    pub(super) fn take(self: &Arc<Self>, max: usize) -> Option<Seat> {
        let one_more = |taken| (taken < max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_falls_below_what_is_taken_lets_nobody_in_until_enough_have_left() {
        let seats = Arc::new(Seats::default());
        let mut taken: Vec<_> = (0..3).map(|_| seats.take(3).unwrap()).collect();
        assert!(seats.take(3).is_none() && seats.take(1).is_none());
        taken.truncate(1);
        assert!(seats.take(1).is_none());
        drop(taken);
        assert!(seats.take(1).is_some());
        assert_eq!(seats.taken.load(Ordering::Acquire), 0);
    }
}
