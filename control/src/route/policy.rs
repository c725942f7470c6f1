//! Which sessions of one user may be online together: a pure rule over their kinds, their age and their number.
//!
//! Devices of one class exclude each other, and all of a user's sessions are bounded. Between sessions that are online
//! already and come back after a restart of control the newest stays, whoever announces first: a client that was told that
//! it is online had its decision.

use gimbal_codec::{Attach, CloseReason, DeviceId};

use crate::error::RequestError;

/// Kinds that are told apart: those of `gimbal.v1.DeviceKind` and room for more. A larger one counts as 0.
pub const KINDS: usize = 16;
/// Class of devices that exclude nobody.
const FREE: u8 = 0;

/// Who gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conflict {
    /// Those that are online.
    Takeover,
    /// The newcomer.
    Refuse,
}

/// The rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    classes: [u8; KINDS],
    conflict: Conflict,
    sessions_max: usize,
}

/// One of a user's sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) device: DeviceId,
    /// Larger: newer.
    pub(super) rank: Attach,
    pub(super) kind: u8,
}

/// Sessions to be ended, each with what its client is told.
pub(super) type Ended = Vec<(DeviceId, CloseReason)>;

impl Default for Policy {
    /// All devices together.
    fn default() -> Self {
        Self::all()
    }
}

impl Policy {
    /// Sessions of one user unless told otherwise: more devices than a person has.
    pub const SESSIONS_MAX: usize = 256;

    /// All devices may be online together.
    pub const fn all() -> Self {
        Self { classes: [FREE; KINDS], conflict: Conflict::Takeover, sessions_max: Self::SESSIONS_MAX }
    }

    /// One device of each user.
    pub const fn one() -> Self {
        Self { classes: [1; KINDS], ..Self::all() }
    }

    /// One device of each kind.
    pub fn one_per_kind() -> Self {
        Self { classes: std::array::from_fn(|kind| kind as u8 + 1), ..Self::all() }
    }

    /// One device of each group of kinds; kinds of no group are free.
    pub fn one_per_group(groups: &[Vec<u8>]) -> Self {
        let mut classes = [FREE; KINDS];
        for (group, class) in groups.iter().zip(1..) {
            for &kind in group {
                classes[place(kind)] = class;
            }
        }
        Self { classes, ..Self::all() }
    }

    /// Who gives way, also at the bound.
    pub const fn with_conflict(self, conflict: Conflict) -> Self {
        Self { conflict, ..self }
    }

    /// Most sessions of one user, at least 1.
    pub const fn with_sessions_max(self, sessions_max: usize) -> Self {
        Self { sessions_max, ..self }
    }

    /// Whether the kind of a device matters.
    pub fn asks_kind(&self) -> bool {
        self.classes.iter().any(|class| *class != self.classes[0])
    }

    /// A device signs in beside `others`: who ends for it, or why it may not come.
    pub(super) fn arrive(&self, kind: u8, others: &[Known]) -> Result<Ended, RequestError> {
        let rivals = others.iter().filter(|other| self.exclude(kind, other.kind));
        if self.conflict == Conflict::Refuse {
            return if rivals.count() > 0 {
                Err(RequestError::DeviceTaken)
            } else if others.len() >= self.sessions_max {
                Err(RequestError::TooManySessions)
            } else {
                Ok(Ended::new())
            };
        }
        let mut ended: Ended = rivals.map(|rival| (rival.device, CloseReason::OtherDevice)).collect();
        self.make_room(others, &mut ended);
        Ok(ended)
    }

    /// A session that is online already is announced beside `others`: who ends for it, or why it ends itself.
    pub(super) fn come_back(&self, mine: Known, others: &[Known]) -> Result<Ended, CloseReason> {
        let rivals = || others.iter().filter(|other| self.exclude(mine.kind, other.kind));
        if rivals().any(|rival| rival.rank > mine.rank) {
            return Err(CloseReason::OtherDevice);
        }
        let newer = others.iter().filter(|other| other.rank > mine.rank);
        if newer.count() >= self.sessions_max {
            return Err(CloseReason::TooManySessions);
        }
        let mut ended: Ended = rivals().map(|rival| (rival.device, CloseReason::OtherDevice)).collect();
        self.make_room(others, &mut ended);
        Ok(ended)
    }

    /// Ends the oldest until one more is within the bound.
    fn make_room(&self, others: &[Known], ended: &mut Ended) {
        while others.len() - ended.len() >= self.sessions_max {
            let stay = others.iter().filter(|other| ended.iter().all(|(device, _)| *device != other.device));
            let oldest = stay.min_by_key(|other| other.rank).expect("sessions_max is at least 1");
            ended.push((oldest.device, CloseReason::TooManySessions));
        }
    }

    fn exclude(&self, one: u8, other: u8) -> bool {
        let class = self.classes[place(one)];
        class != FREE && class == self.classes[place(other)]
    }
}

fn place(kind: u8) -> usize {
    if usize::from(kind) < KINDS { usize::from(kind) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(device: u64, kind: u8) -> Known {
        Known { device: DeviceId::new(device), rank: Attach::new(device), kind }
    }

    fn devices(ended: &Ended) -> Vec<u64> {
        ended.iter().map(|(device, _)| device.get()).collect()
    }

    #[test]
    fn each_policy_ends_whom_its_name_says() {
        // A device of each kind, and a second one of kind 1 that comes.
        let others: Vec<Known> = (0..6).map(|kind| known(u64::from(kind) + 1, kind)).collect();
        let of = |policy: Policy, kind| devices(&policy.arrive(kind, &others).unwrap());
        assert_eq!(of(Policy::all(), 1), [] as [u64; 0]);
        assert_eq!(of(Policy::one(), 1), [1, 2, 3, 4, 5, 6]);
        assert_eq!(of(Policy::one_per_kind(), 1), [2]);
        assert_eq!(of(Policy::one_per_kind(), 200), [1], "unknown kinds are one kind");
        let groups = Policy::one_per_group(&[vec![1, 2], vec![3, 4]]);
        assert_eq!((of(groups, 1), of(groups, 4), of(groups, 5)), (vec![2, 3], vec![4, 5], vec![]));
        assert_eq!(
            [Policy::all(), Policy::one(), Policy::one_per_kind(), groups].map(|policy| policy.asks_kind()),
            [false, false, true, true]
        );
    }

    #[test]
    fn a_newcomer_is_refused_where_those_online_stay() {
        let policy = Policy::one_per_kind().with_conflict(Conflict::Refuse).with_sessions_max(2);
        let one = [known(1, 1)];
        assert_eq!(policy.arrive(1, &one), Err(RequestError::DeviceTaken));
        assert_eq!(policy.arrive(2, &one), Ok(vec![]));
        assert_eq!(policy.arrive(3, &[known(1, 1), known(2, 2)]), Err(RequestError::TooManySessions));
    }

    #[test]
    fn the_oldest_end_at_the_bound_and_no_more_of_them_than_needed() {
        let policy = Policy::one_per_kind().with_sessions_max(2);
        let others = [known(7, 1), known(3, 2)];
        let ended = policy.arrive(3, &others).unwrap();
        assert_eq!(ended, [(DeviceId::new(3), CloseReason::TooManySessions)]);
        let ended = policy.arrive(1, &others).unwrap();
        assert_eq!(ended, [(DeviceId::new(7), CloseReason::OtherDevice)], "which makes room already");
    }

    #[test]
    fn of_announced_sessions_the_newest_stay_in_whatever_order_they_come() {
        let all = [known(1, 1), known(2, 1), known(3, 2), known(4, 3), known(5, 3)];
        let policy = Policy::one_per_kind().with_conflict(Conflict::Refuse).with_sessions_max(2);
        for turn in 0..all.len() {
            let mut online: Vec<Known> = Vec::new();
            for at in 0..all.len() {
                let mine = all[(at + turn) % all.len()];
                if let Ok(ended) = policy.come_back(mine, &online) {
                    online.retain(|other| ended.iter().all(|(device, _)| *device != other.device));
                    online.push(mine);
                }
            }
            let mut stay: Vec<u64> = online.iter().map(|known| known.device.get()).collect();
            stay.sort_unstable();
            assert_eq!(stay.last(), Some(&5), "turn {turn}");
            assert!(!stay.contains(&1) && !stay.contains(&4), "turn {turn}: {stay:?}");
            assert!(stay.len() <= 2, "turn {turn}: {stay:?}");
        }
    }
}
