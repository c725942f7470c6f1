//! Who of this shard is in which room. Members lie densely, for the fan-out; joining and leaving are O(1) in the members
//! of the room and walk the few rooms of the session. 24 bytes a membership.

use std::collections::VecDeque;

use gimbal_codec::{RoomId, SessionKey};
use hashbrown::HashMap;

/// No membership, end of a list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Room {
    id: RoomId,
    members: Vec<SessionKey>,
    /// `memberships[n]` belongs to `members[n]`.
    memberships: Vec<u32>,
    /// What control knows.
    reported: u32,
    /// On the list of rooms that became or ceased to be empty.
    is_urgent: bool,
    /// On the list of rooms whose count changed.
    is_dirty: bool,
}

/// What control is to be told of a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interest {
    pub(crate) room: RoomId,
    /// Members on this shard now.
    pub(crate) members: u32,
    /// What control was told before; 0: nothing.
    pub(crate) before: u32,
}

#[derive(Clone, Copy, Debug)]
struct Membership {
    room: u32,
    /// In the room's `members`.
    position: u32,
    /// The session's next membership, or the next free one.
    next: u32,
}

/// The rooms of one shard.
#[derive(Debug)]
pub(crate) struct Rooms {
    by_id: HashMap<RoomId, u32>,
    rooms: Vec<Room>,
    free_rooms: Vec<u32>,
    memberships: Vec<Membership>,
    first_free: u32,
    /// First membership of each session, by slot index.
    firsts: Vec<u32>,
    urgent: VecDeque<u32>,
    dirty: VecDeque<u32>,
    member_count: u32,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            rooms: Vec::new(),
            free_rooms: Vec::new(),
            memberships: Vec::new(),
            first_free: NONE,
            firsts: Vec::new(),
            urgent: VecDeque::new(),
            dirty: VecDeque::new(),
            member_count: 0,
        }
    }
}

impl Rooms {
    /// Puts a session into a room; `false` when it is there already.
    pub(crate) fn join(&mut self, key: SessionKey, room: RoomId) -> bool {
        let room = self.room_index(room);
        if self.find(key, room).is_some() {
            self.forget_if_unused(room);
            return false;
        }
        let slot = key.index() as usize;
        if self.firsts.len() <= slot {
            self.firsts.resize(slot + 1, NONE);
        }
        let table = &mut self.rooms[room as usize];
        let position = to_u32(table.members.len());
        let membership = Membership { room, position, next: self.firsts[slot] };
        let index = if self.first_free == NONE {
            self.memberships.push(membership);
            to_u32(self.memberships.len() - 1)
        } else {
            let index = self.first_free;
            self.first_free = self.memberships[index as usize].next;
            self.memberships[index as usize] = membership;
            index
        };
        table.members.push(key);
        table.memberships.push(index);
        self.firsts[slot] = index;
        self.member_count += 1;
        self.note_change(room);
        true
    }

    /// Takes a session out of a room; `false` when it was not there.
    pub(crate) fn leave(&mut self, key: SessionKey, room: RoomId) -> bool {
        let Some(&room) = self.by_id.get(&room) else { return false };
        let Some((before, index)) = self.find(key, room) else { return false };
        let next = self.memberships[index as usize].next;
        if before == NONE {
            self.firsts[key.index() as usize] = next;
        } else {
            self.memberships[before as usize].next = next;
        }
        self.remove(index);
        true
    }

    /// Takes a session out of all its rooms. Must be called before its slot is used again.
    pub(crate) fn leave_all(&mut self, key: SessionKey) {
        let Some(first) = self.firsts.get_mut(key.index() as usize) else { return };
        let mut index = std::mem::replace(first, NONE);
        while index != NONE {
            let next = self.memberships[index as usize].next;
            self.remove(index);
            index = next;
        }
    }

    /// The members of a room on this shard. The order changes when one leaves.
    pub(crate) fn members(&self, room: RoomId) -> &[SessionKey] {
        match self.by_id.get(&room) {
            Some(&index) => &self.rooms[index as usize].members,
            None => &[],
        }
    }

    /// Memberships of all rooms.
    pub(crate) fn member_count(&self) -> u32 {
        self.member_count
    }

    /// Rooms with members, and those whose end control was not told yet.
    pub(crate) fn room_count(&self) -> usize {
        self.by_id.len()
    }

    /// Moves to `out` up to `count_max` rooms that became or ceased to be empty since they were last reported, with their
    /// members now. For every turn while the link is up.
    pub(crate) fn take_urgent(&mut self, count_max: usize, out: &mut Vec<Interest>) {
        for _ in 0..count_max {
            let Some(index) = self.urgent.pop_front() else { return };
            self.rooms[index as usize].is_urgent = false;
            self.report(index, out);
        }
    }

    /// Rooms wait for [`Self::take_urgent`].
    pub(crate) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Moves to `out` up to `count_max` other rooms whose members changed in number since they were last reported. For once
    /// a second.
    pub(crate) fn take_counts(&mut self, count_max: usize, out: &mut Vec<Interest>) {
        for _ in 0..count_max {
            let Some(index) = self.dirty.pop_front() else { return };
            self.rooms[index as usize].is_dirty = false;
            self.report(index, out);
        }
    }

    /// Rooms that wait for [`Self::take_counts`].
    pub(crate) fn changed_count(&self) -> usize {
        self.dirty.len()
    }

    /// Control did not get this report: the room waits for the next one. What control knows is what it was told before, so
    /// rooms that come and go meanwhile leave nothing behind.
    pub(crate) fn unreport(&mut self, Interest { room, before, .. }: Interest) {
        let index = self.room_index(room);
        self.rooms[index as usize].reported = before;
        self.note_change(index);
    }

    /// Control knows of no room of this shard: all that have members are to be reported.
    pub(crate) fn forget_reports(&mut self) {
        self.drop_changes();
        for index in 0..to_u32(self.rooms.len()) {
            let room = &mut self.rooms[index as usize];
            room.reported = 0;
            if room.members.is_empty() {
                self.forget_if_unused(index);
            } else {
                self.note_change(index);
            }
        }
    }

    /// For every turn while there is nobody to report to, after [`Self::forget_reports`].
    pub(crate) fn drop_changes(&mut self) {
        for index in std::mem::take(&mut self.urgent).into_iter().chain(std::mem::take(&mut self.dirty)) {
            let room = &mut self.rooms[index as usize];
            (room.is_urgent, room.is_dirty) = (false, false);
            self.forget_if_unused(index);
        }
    }

    fn report(&mut self, index: u32, out: &mut Vec<Interest>) {
        let room = &mut self.rooms[index as usize];
        let members = to_u32(room.members.len());
        if members != room.reported {
            let before = std::mem::replace(&mut room.reported, members);
            out.push(Interest { room: room.id, members, before });
        }
        self.forget_if_unused(index);
    }

    /// The table of a room, made when there is none.
    fn room_index(&mut self, id: RoomId) -> u32 {
        if let Some(&index) = self.by_id.get(&id) {
            return index;
        }
        let room = Room {
            id,
            members: Vec::new(),
            memberships: Vec::new(),
            reported: 0,
            is_urgent: false,
            is_dirty: false,
        };
        let index = match self.free_rooms.pop() {
            Some(index) => {
                self.rooms[index as usize] = room;
                index
            }
            None => {
                self.rooms.push(room);
                to_u32(self.rooms.len() - 1)
            }
        };
        self.by_id.insert(id, index);
        index
    }

    fn forget_if_unused(&mut self, index: u32) {
        let room = &self.rooms[index as usize];
        let is_used = !room.members.is_empty() || room.reported != 0 || room.is_urgent || room.is_dirty;
        // A room already forgotten keeps its number until the table is used again.
        if !is_used && self.by_id.get(&room.id) == Some(&index) {
            self.by_id.remove(&room.id);
            self.free_rooms.push(index);
        }
    }

    /// The session's membership of a room, and the one before it in the session's list.
    fn find(&self, key: SessionKey, room: u32) -> Option<(u32, u32)> {
        let (mut before, mut index) = (NONE, *self.firsts.get(key.index() as usize)?);
        while index != NONE {
            let membership = self.memberships[index as usize];
            if membership.room == room {
                return Some((before, index));
            }
            (before, index) = (index, membership.next);
        }
        None
    }

    /// Takes a membership that is on no session's list out of its room.
    fn remove(&mut self, index: u32) {
        let Membership { room, position, .. } = self.memberships[index as usize];
        let table = &mut self.rooms[room as usize];
        table.members.swap_remove(position as usize);
        table.memberships.swap_remove(position as usize);
        if let Some(&moved) = table.memberships.get(position as usize) {
            self.memberships[moved as usize].position = position;
        }
        if table.members.len() < table.members.capacity() / 4 {
            table.members.shrink_to(table.members.len() * 2);
            table.memberships.shrink_to(table.memberships.len() * 2);
        }
        self.memberships[index as usize].next = self.first_free;
        self.first_free = index;
        self.member_count -= 1;
        self.note_change(room);
    }

    /// Puts a room on the list on which its change belongs.
    fn note_change(&mut self, index: u32) {
        let room = &mut self.rooms[index as usize];
        if room.members.is_empty() != (room.reported == 0) {
            if !std::mem::replace(&mut room.is_urgent, true) {
                self.urgent.push_back(index);
            }
        } else if !std::mem::replace(&mut room.is_dirty, true) {
            self.dirty.push_back(index);
        }
    }
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).expect("2^24 sessions with some dozen rooms each")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use gimbal_codec::ShardId;
    use proptest::prelude::*;

    use super::*;

    fn key(index: u32) -> SessionKey {
        SessionKey::new(ShardId(0), index, 7)
    }

    /// All reports that are due.
    fn reports(rooms: &mut Rooms) -> Vec<Interest> {
        let mut out = Vec::new();
        rooms.take_urgent(usize::MAX, &mut out);
        rooms.take_counts(usize::MAX, &mut out);
        out
    }

    fn interest(room: u64, members: u32, before: u32) -> Interest {
        Interest { room: RoomId::new(room), members, before }
    }

    #[test]
    fn first_and_last_member_are_urgent_and_what_cancels_out_is_silent() {
        let (mut rooms, mut out) = (Rooms::default(), Vec::new());
        let room = RoomId::new(9);
        assert!(rooms.join(key(1), room) && !rooms.join(key(1), room));
        rooms.leave(key(1), room);
        assert_eq!((reports(&mut rooms), rooms.room_count()), (Vec::new(), 0));

        rooms.join(key(1), room);
        rooms.take_urgent(1, &mut out);
        rooms.join(key(2), room);
        rooms.take_urgent(1, &mut out);
        assert_eq!(out, [interest(9, 1, 0)]);
        rooms.take_counts(1, &mut out);
        rooms.leave_all(key(1));
        rooms.leave_all(key(2));
        rooms.take_urgent(1, &mut out);
        assert_eq!(out, [interest(9, 1, 0), interest(9, 2, 1), interest(9, 0, 2)]);
        assert_eq!((reports(&mut rooms), rooms.room_count()), (Vec::new(), 0));
    }

    #[test]
    fn a_new_control_is_told_every_room_with_members_at_a_bounded_pace() {
        let mut rooms = Rooms::default();
        for n in 1..=3 {
            rooms.join(key(n), RoomId::new(u64::from(n)));
        }
        reports(&mut rooms);
        rooms.leave_all(key(2));
        rooms.forget_reports();
        let mut out = Vec::new();
        rooms.take_urgent(1, &mut out);
        assert!(rooms.has_urgent());
        out.extend(reports(&mut rooms));
        assert_eq!(out, [interest(1, 1, 0), interest(3, 1, 0)]);
        assert_eq!((reports(&mut rooms), rooms.room_count()), (Vec::new(), 2));
    }

    #[test]
    fn rooms_that_come_and_go_unreported_leave_nothing_behind() {
        let mut rooms = Rooms::default();
        rooms.join(key(1), RoomId::new(1));
        assert_eq!(reports(&mut rooms), [interest(1, 1, 0)]);
        for (is_link_up, range) in [(false, 2..1000), (true, 1000..2000)] {
            if !is_link_up {
                rooms.forget_reports();
            }
            for room in range {
                rooms.join(key(2), RoomId::new(room));
                match is_link_up {
                    true => reports(&mut rooms).into_iter().for_each(|refused| rooms.unreport(refused)),
                    false => rooms.drop_changes(),
                }
                rooms.leave_all(key(2));
                match is_link_up {
                    true => reports(&mut rooms).into_iter().for_each(|refused| rooms.unreport(refused)),
                    false => rooms.drop_changes(),
                }
                assert!(rooms.room_count() <= 2 && rooms.urgent.len() + rooms.dirty.len() <= 2);
            }
            assert!(rooms.rooms.len() <= 3, "tables are used again");
        }
        rooms.forget_reports();
        assert_eq!(reports(&mut rooms), [interest(1, 1, 0)]);
    }

    proptest! {
        /// Against sets: members agree, and control's picture agrees after every report.
        #[test]
        fn rooms_agree_with_plain_sets(
            steps in prop::collection::vec((0u32..12, 1u64..6, 0u8..10), 1..300),
        ) {
            let mut rooms = Rooms::default();
            let mut model: BTreeMap<u64, BTreeSet<SessionKey>> = BTreeMap::new();
            let mut told: BTreeMap<u64, u32> = BTreeMap::new();
            for (index, room, what) in steps {
                let (member, id) = (key(index), RoomId::new(room));
                let mut out = Vec::new();
                match what {
                    0..=2 => prop_assert_eq!(rooms.join(member, id), model.entry(room).or_default().insert(member)),
                    3 | 4 => {
                        prop_assert_eq!(rooms.leave(member, id), model.entry(room).or_default().remove(&member));
                    }
                    5 => {
                        rooms.leave_all(member);
                        model.values_mut().for_each(|members| { members.remove(&member); });
                    }
                    6 => rooms.take_urgent(2, &mut out),
                    7 => rooms.take_counts(2, &mut out),
                    8 => {
                        rooms.forget_reports();
                        told.clear();
                    }
                    _ => reports(&mut rooms).into_iter().for_each(|refused| rooms.unreport(refused)),
                }
                for Interest { room: id, members, before } in out {
                    prop_assert_eq!(before, told.get(&id.get()).copied().unwrap_or(0));
                    prop_assert_eq!(members as usize, model.get(&id.get()).map_or(0, BTreeSet::len));
                    told.insert(id.get(), members);
                }
                for (room, members) in &model {
                    let dense: BTreeSet<_> = rooms.members(RoomId::new(*room)).iter().copied().collect();
                    prop_assert_eq!(&dense, members);
                    prop_assert_eq!(rooms.members(RoomId::new(*room)).len(), members.len());
                }
            }
            told.extend(reports(&mut rooms).into_iter().map(|report| (report.room.get(), report.members)));
            for (room, members) in &model {
                prop_assert_eq!(told.get(room).copied().unwrap_or(0) as usize, members.len());
            }
            prop_assert_eq!(rooms.room_count(), model.values().filter(|members| !members.is_empty()).count());
        }
    }
}
