//! The rooms of one session: those it joined, and gim's one. Without rooms it costs one pointer.

use gimbal_codec::RoomId;

use super::pace::{Pace, Used};
use super::{Action, Moment};

/// The rooms of one session. A room that is both joined and gim's is entered once.
#[derive(Debug, Default)]
pub(super) struct RoomSet {
    inner: Option<Box<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Set by gim's `SUBSCRIBE_ROOM`; 0: none.
    subscribed: RoomId,
    joined: Vec<RoomId>,
    /// Since the first publish, to the end of the session.
    publishes: Option<Used>,
}

/// The session would be in more rooms than it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooManyRooms;

impl RoomSet {
    pub(super) fn contains(&self, room: RoomId) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.subscribed == room || inner.joined.contains(&room))
    }

    /// Replaces gim's room; 0 leaves it.
    pub(super) fn subscribe(&mut self, room: RoomId, out: &mut Vec<Action>) {
        let old = self.inner.as_ref().map_or(RoomId::default(), |inner| inner.subscribed);
        if old == room {
            return;
        }
        let is_new = !room.is_none() && !self.contains(room);
        self.inner.get_or_insert_default().subscribed = room;
        if is_new {
            out.push(Action::Join(room));
        }
        if !old.is_none() && !self.contains(old) {
            out.push(Action::Leave(old));
        }
        self.release();
    }

    /// Joins all of `rooms`, none of them 0, or none.
    pub(super) fn join(
        &mut self,
        rooms: &[RoomId],
        rooms_max: usize,
        out: &mut Vec<Action>,
    ) -> Result<(), TooManyRooms> {
        let inner = self.inner.get_or_insert_default();
        let before = inner.joined.len();
        for &room in rooms {
            if inner.joined.contains(&room) {
                continue;
            }
            if inner.joined.len() >= rooms_max {
                inner.joined.truncate(before);
                self.release();
                return Err(TooManyRooms);
            }
            inner.joined.push(room);
        }
        let subscribed = inner.subscribed;
        out.extend(
            inner.joined[before..].iter().filter(|&&room| room != subscribed).map(|&room| Action::Join(room)),
        );
        Ok(())
    }

    /// Whether the session, which is in a room, may publish now; counts it.
    pub(super) fn take_publish(&mut self, now: Moment, pace: Pace) -> bool {
        let inner = self.inner.get_or_insert_default();
        inner.publishes.get_or_insert_with(|| Used::new(now)).take(now, pace)
    }

    /// Leaves those of `rooms` that were joined.
    pub(super) fn leave(&mut self, rooms: &[RoomId], out: &mut Vec<Action>) {
        let Some(inner) = self.inner.as_mut() else { return };
        for &room in rooms {
            let Some(position) = inner.joined.iter().position(|&joined| joined == room) else { continue };
            inner.joined.swap_remove(position);
            if room != inner.subscribed {
                out.push(Action::Leave(room));
            }
        }
        self.release();
    }

    /// Leaves all that were joined; gim's room stays.
    pub(super) fn leave_all(&mut self, out: &mut Vec<Action>) {
        let Some(inner) = self.inner.as_mut() else { return };
        let joined = std::mem::take(&mut inner.joined);
        out.extend(joined.into_iter().filter(|&room| room != inner.subscribed).map(Action::Leave));
        self.release();
    }

    fn release(&mut self) {
        let is_unused = |inner: &Inner| {
            inner.subscribed.is_none() && inner.joined.is_empty() && inner.publishes.is_none()
        };
        if self.inner.as_deref().is_some_and(is_unused) {
            self.inner = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(n: u64) -> RoomId {
        RoomId::new(n)
    }

    #[test]
    fn a_room_joined_and_subscribed_is_entered_and_left_once() {
        let (mut set, mut out) = (RoomSet::default(), Vec::new());
        set.subscribe(room(5), &mut out);
        set.join(&[room(5), room(6), room(6)], 2, &mut out).unwrap();
        set.subscribe(room(7), &mut out);
        set.leave(&[room(5), room(8)], &mut out);
        set.leave_all(&mut out);
        assert!(set.contains(room(7)) && !set.contains(room(6)));
        set.subscribe(room(0), &mut out);
        let (join, leave) = (|n| Action::Join(room(n)), |n| Action::Leave(room(n)));
        assert_eq!(out, [join(5), join(6), join(7), leave(5), leave(6), leave(7)]);
        assert!(set.inner.is_none());
    }

    #[test]
    fn a_join_over_the_limit_joins_nothing() {
        let (mut set, mut out) = (RoomSet::default(), Vec::new());
        set.join(&[room(1), room(2)], 3, &mut out).unwrap();
        out.clear();
        assert_eq!(set.join(&[room(3), room(4)], 3, &mut out), Err(TooManyRooms));
        assert!(out.is_empty() && !set.contains(room(3)) && set.contains(room(2)));
        set.join(&[room(1), room(3)], 3, &mut out).unwrap();
        assert_eq!(out, [Action::Join(room(3))]);
    }
}
