//! Rooms: which gateways have members, and the order of what is published.
//!
//! Nothing here is stored. A room exists while some shard of some gateway counts members in it; when the last one
//! leaves it is forgotten. Each life of a room has its own epoch, larger than every one before it (control's durable
//! epoch and a counter of all lives), and numbers its publishes from 1; so (epoch, seq) rises for ever, and a client that
//! sees a new epoch knows that it starts at 1.
//!
//! A publish is stamped and handed to every interested gateway under the room's lock: all gateways get the same order.

pub mod options;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use bytes::Bytes;
use gimbal_codec::{DeviceId, RoomId, ShardId, UserId, body, epoch_number};
use hashbrown::HashMap;

use crate::command::Lane;
use crate::error::RequestError;
use options::OptionTable;

/// Independent locks: enough that two publishes to different rooms rarely meet.
const SHARDS: usize = 64;
/// Multiplier of Fibonacci hashing (2^64 / golden ratio): spreads consecutive room ids over the locks.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// All rooms with members.
pub struct Rooms {
    shards: Box<[Mutex<HashMap<RoomId, Room>>]>,
    control_epoch: u32,
    lives: AtomicU64,
    count: AtomicUsize,
    rooms_max: AtomicUsize,
    options: OptionTable,
}

/// One life of one room.
struct Room {
    epoch: u64,
    seq: u64,
    /// Of the members' rate; see [`options::Pace::take`].
    used_us: i64,
    /// Sorted by lane and shard; never empty; no entry has zero members.
    interest: Vec<Interest>,
}

#[derive(Clone, Copy)]
struct Interest {
    lane: Lane,
    shard: ShardId,
    members: u32,
}

/// There are as many rooms as there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("as many rooms as there may be")]
pub struct RoomsFull;

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// Opaque type code.
    pub command: i32,
    /// Opaque content.
    pub content: &'a [u8],
    /// Who publishes; none: the backend.
    pub from: (UserId, DeviceId),
    /// Unix milliseconds.
    pub now_ms: i64,
}

/// Where a publish stands in its room, and how many gateways took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// Life of the room.
    pub epoch: u64,
    /// From 1 within the epoch.
    pub seq: u64,
    /// Gateways that were interested and had room.
    pub gateways: u32,
}

impl Rooms {
    /// No rooms yet. `control_epoch` is the store's, so that lives of this process come after those of the last.
    pub fn new(control_epoch: u32, rooms_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            control_epoch,
            lives: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            rooms_max: AtomicUsize::new(rooms_max),
            options: OptionTable::default(),
        }
    }

    /// With other settings than those of [`options::Options::default`] for all.
    pub fn with_options(self, options: OptionTable) -> Self {
        Self { options, ..self }
    }

    /// From now on; rooms that are there stay.
    pub(crate) fn set_rooms_max(&self, rooms_max: usize) {
        self.rooms_max.store(rooms_max, Ordering::Relaxed);
    }

    /// How many members `room` has on one shard of one gateway; 0 ends its interest.
    ///
    /// # Errors
    /// [`RoomsFull`]: the room is new and there is no place for it; nothing changed.
    pub fn interest(&self, lane: Lane, room: RoomId, shard: ShardId, members: u32) -> Result<(), RoomsFull> {
        let mut rooms = self.lock(room);
        let Some(known) = rooms.get_mut(&room) else {
            if members == 0 {
                return Ok(());
            }
            if self.count.fetch_add(1, Ordering::Relaxed) >= self.rooms_max.load(Ordering::Relaxed) {
                self.count.fetch_sub(1, Ordering::Relaxed);
                return Err(RoomsFull);
            }
            let interest = vec![Interest { lane, shard, members }];
            rooms.insert(room, Room { epoch: self.next_epoch(), seq: 0, used_us: 0, interest });
            return Ok(());
        };
        match known.interest.binary_search_by_key(&(lane.0, shard), |entry| (entry.lane.0, entry.shard)) {
            Ok(at) if members == 0 => drop(known.interest.remove(at)),
            Ok(at) => known.interest[at].members = members,
            Err(_) if members == 0 => {}
            Err(at) => known.interest.insert(at, Interest { lane, shard, members }),
        }
        if known.interest.is_empty() {
            rooms.remove(&room);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends all interest of a link connection that is gone. Walks all rooms, one lock at a time.
    pub fn forget(&self, lane: Lane) {
        for shard in &self.shards {
            let mut rooms = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let before = rooms.len();
            rooms.retain(|_, room| {
                room.interest.retain(|entry| entry.lane != lane);
                !room.interest.is_empty()
            });
            self.count.fetch_sub(before - rooms.len(), Ordering::Relaxed);
        }
    }

    /// Stamps, encodes once, and hands the frame to each interested gateway with `deliver`, which returns whether the
    /// gateway took it and must not block. A publish to a room without members is a life of its own, seen by nobody.
    pub fn publish(
        &self,
        room: RoomId,
        publish: Publish<'_>,
        deliver: impl FnMut(Lane, Bytes) -> bool,
    ) -> Published {
        match self.lock(room).get_mut(&room) {
            Some(known) => known.publish(room, publish, deliver),
            None => Published { epoch: self.next_epoch(), seq: 1, gateways: 0 },
        }
    }

    /// The same for a member, where members may and not more often than they may. Nobody is a member of a room that no
    /// gateway has told of.
    ///
    /// # Errors
    /// [`RequestError::PublishNotAllowed`], [`RequestError::Busy`] beyond the room's rate, [`RequestError::Unavailable`] when
    /// there was no place for the room; nobody gets anything then.
    pub fn publish_by_member(
        &self,
        room: RoomId,
        publish: Publish<'_>,
        deliver: impl FnMut(Lane, Bytes) -> bool,
    ) -> Result<Published, RequestError> {
        let options = self.options.of(room);
        if !options.members_publish {
            return Err(RequestError::PublishNotAllowed);
        }
        let mut rooms = self.lock(room);
        let known = rooms.get_mut(&room).ok_or(RequestError::Unavailable)?;
        if !options.publishes.take(&mut known.used_us, publish.now_ms) {
            return Err(RequestError::Busy);
        }
        Ok(known.publish(room, publish, deliver))
    }

    /// Up to `limit` rooms with the most members, most first; of as many, the smaller ids. Walks all rooms, one lock at a time.
    pub fn top(&self, limit: usize) -> Vec<(RoomId, u64)> {
        let mut top = BinaryHeap::with_capacity(limit + 1);
        for shard in &self.shards {
            for (id, room) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                top.push(Reverse((room.members(), Reverse(*id))));
                if top.len() > limit {
                    top.pop();
                }
            }
        }
        top.into_sorted_vec().into_iter().map(|Reverse((members, Reverse(room)))| (room, members)).collect()
    }

    /// Members on all gateways, as these last told (at most a second ago).
    pub fn count(&self, room: RoomId) -> u64 {
        self.lock(room).get(&room).map_or(0, Room::members)
    }

    /// The gateways that have members, each once.
    pub fn lanes(&self, room: RoomId) -> Vec<Lane> {
        let rooms = self.lock(room);
        let mut lanes: Vec<Lane> = rooms
            .get(&room)
            .map_or_else(Vec::new, |room| room.interest.iter().map(|entry| entry.lane).collect());
        lanes.dedup();
        lanes
    }

    /// Rooms with members.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// No room has members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn next_epoch(&self) -> u64 {
        epoch_number(self.control_epoch, self.lives.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self, room: RoomId) -> MutexGuard<'_, HashMap<RoomId, Room>> {
        let at = (room.get().wrapping_mul(SPREAD) >> (u64::BITS - SHARDS.trailing_zeros())) as usize;
        // A panic under this lock leaves at worst a number unused or a gateway without one frame.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const _: () = assert!(SHARDS.is_power_of_two());

impl Room {
    fn publish(
        &mut self,
        room: RoomId,
        publish: Publish<'_>,
        mut deliver: impl FnMut(Lane, Bytes) -> bool,
    ) -> Published {
        self.seq += 1;
        let frame = frame(room, publish, self.epoch, self.seq);
        let mut gateways = 0;
        let mut last = None;
        for entry in &self.interest {
            if last.replace(entry.lane) != Some(entry.lane) && deliver(entry.lane, frame.clone()) {
                gateways += 1;
            }
        }
        Published { epoch: self.epoch, seq: self.seq, gateways }
    }

    fn members(&self) -> u64 {
        self.interest.iter().map(|entry| u64::from(entry.members)).sum()
    }
}

fn frame(room: RoomId, publish: Publish<'_>, room_epoch: u64, room_seq: u64) -> Bytes {
    message_frame(&body::Message {
        command: publish.command,
        content: publish.content,
        created_at: publish.now_ms / 1000,
        created_at_ms: publish.now_ms,
        from_user: publish.from.0,
        from_device: publish.from.1,
        room,
        room_epoch,
        room_seq,
        ..body::Message::default()
    })
}

/// The whole frame of a message from the backend, as every client gets it.
pub fn message_frame(message: &body::Message<'_>) -> Bytes {
    gimbal_codec::frame(gimbal_codec::Command::Message, "", 0, message)
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{Decoder, Packet};

    use super::options::{Options, Pace};
    use super::*;

    const ROOM: RoomId = RoomId::new(77);
    const HELLO: Publish<'static> =
        Publish { command: 5, content: b"hello", from: (UserId::new(0), DeviceId::new(0)), now_ms: 12_345 };

    fn rooms() -> Rooms {
        Rooms::new(3, 2)
    }

    fn to_all(rooms: &Rooms) -> (Published, Vec<(Lane, Bytes)>) {
        let mut given = Vec::new();
        let published = rooms.publish(ROOM, HELLO, |lane, frame| {
            given.push((lane, frame));
            true
        });
        (published, given)
    }

    #[test]
    fn each_interested_gateway_gets_the_same_frame_once() {
        let rooms = rooms();
        for (lane, shard) in [(1, 0), (2, 0), (1, 1)] {
            rooms.interest(Lane(lane), ROOM, ShardId(shard), 4).unwrap();
        }
        let (published, given) = to_all(&rooms);
        assert_eq!(given.iter().map(|(lane, _)| lane.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(given[0].1, given[1].1);
        assert_eq!((published.seq, published.gateways, rooms.count(ROOM)), (1, 2, 12));
        assert_eq!(rooms.lanes(ROOM), [Lane(1), Lane(2)]);

        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(&given[0].1);
        let packet = Packet::decode(feed.next_frame(1 << 16).unwrap().unwrap()).unwrap();
        let message = body::Message::decode(packet.content).unwrap();
        assert_eq!((message.command, message.content, message.room), (5, b"hello".as_slice(), ROOM));
        assert_eq!((message.room_epoch, message.room_seq), (published.epoch, 1));
        assert_eq!((message.created_at, message.created_at_ms, message.seq.get()), (12, 12_345, 0));
    }

    #[test]
    fn a_new_life_of_a_room_has_a_later_epoch_and_starts_at_one() {
        let rooms = rooms();
        rooms.interest(Lane(1), ROOM, ShardId(0), 1).unwrap();
        let (first, _) = to_all(&rooms);
        let (second, _) = to_all(&rooms);
        assert_eq!((second.epoch, second.seq), (first.epoch, 2));
        rooms.interest(Lane(1), ROOM, ShardId(0), 0).unwrap();
        assert!(rooms.is_empty(), "a room without members takes no memory");
        let (unseen, given) = to_all(&rooms);
        assert!(given.is_empty() && unseen.epoch > second.epoch && unseen.gateways == 0);
        rooms.interest(Lane(1), ROOM, ShardId(0), 1).unwrap();
        let (third, _) = to_all(&rooms);
        assert!(third.epoch > unseen.epoch && third.seq == 1);
        assert!(
            Rooms::new(4, 1).publish(ROOM, HELLO, |_, _| true).epoch > third.epoch,
            "also after a restart"
        );
    }

    #[test]
    fn a_gone_gateway_is_forgotten_and_others_stay() {
        let rooms = rooms();
        rooms.interest(Lane(1), ROOM, ShardId(0), 1).unwrap();
        rooms.interest(Lane(2), ROOM, ShardId(0), 1).unwrap();
        rooms.interest(Lane(1), RoomId::new(78), ShardId(0), 1).unwrap();
        rooms.forget(Lane(1));
        assert_eq!((rooms.len(), rooms.count(ROOM)), (1, 1));
        assert_eq!(to_all(&rooms).1.len(), 1);
    }

    #[test]
    fn rooms_are_bounded_and_leaving_makes_place() {
        let rooms = rooms();
        for room in [1, 2] {
            rooms.interest(Lane(1), RoomId::new(room), ShardId(0), 1).unwrap();
        }
        assert_eq!(rooms.interest(Lane(1), RoomId::new(3), ShardId(0), 1), Err(RoomsFull));
        rooms.interest(Lane(1), RoomId::new(1), ShardId(0), 0).unwrap();
        rooms.interest(Lane(1), RoomId::new(3), ShardId(0), 1).unwrap();
        assert_eq!(rooms.len(), 2);
    }

    #[test]
    fn members_publish_where_they_may_and_as_often_as_they_may() {
        let open = Options { members_publish: true, publishes: Pace::new(1, 2) };
        let table = OptionTable::new(
            Options::default(),
            vec![(ROOM, ROOM, open), (RoomId::new(79), RoomId::new(80), open)],
        );
        let rooms = rooms().with_options(table);
        let closed = RoomId::new(78);
        for room in [ROOM, closed] {
            rooms.interest(Lane(1), room, ShardId(0), 1).unwrap();
        }
        let from = (UserId::new(10), DeviceId::new(20));
        let by_member = |room, now_ms| {
            let mut given = Vec::new();
            let publish = Publish { from, now_ms, ..HELLO };
            let deliver = |_, frame| {
                given.push(frame);
                true
            };
            let published = rooms.publish_by_member(room, publish, deliver);
            (published.map(|published| published.seq), given)
        };
        assert_eq!(by_member(closed, 1000), (Err(RequestError::PublishNotAllowed), vec![]));
        assert_eq!(by_member(RoomId::new(79), 1000).0, Err(RequestError::Unavailable));
        let (seq, given) = by_member(ROOM, 1000);
        assert_eq!(seq, Ok(1));
        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(&given[0]);
        let packet = Packet::decode(feed.next_frame(1 << 16).unwrap().unwrap()).unwrap();
        let message = body::Message::decode(packet.content).unwrap();
        assert_eq!((message.from_user, message.from_device), from);
        assert_eq!(by_member(ROOM, 1000).0, Ok(2));
        assert_eq!(by_member(ROOM, 1000), (Err(RequestError::Busy), vec![]));
        assert_eq!(to_all(&rooms).0.seq, 3, "the backend is not counted");
        assert_eq!(by_member(ROOM, 2000).0, Ok(4));
    }

    #[test]
    fn the_largest_rooms_come_first() {
        let rooms = Rooms::new(3, 1000);
        for room in 1..=100 {
            let members = if room == 7 { 1000 } else { room as u32 / 2 };
            rooms.interest(Lane(1), RoomId::new(room), ShardId(0), members).unwrap();
            rooms.interest(Lane(2), RoomId::new(room), ShardId(0), 1).unwrap();
        }
        let top =
            |limit| rooms.top(limit).iter().map(|(room, count)| (room.get(), *count)).collect::<Vec<_>>();
        assert_eq!(top(4), [(7, 1001), (100, 51), (98, 50), (99, 50)]);
        assert_eq!((top(0), top(1000).len()), (vec![], 100));
    }

    #[test]
    fn a_gateway_that_is_full_is_not_counted_as_reached() {
        let rooms = rooms();
        rooms.interest(Lane(1), ROOM, ShardId(0), 1).unwrap();
        assert_eq!(rooms.publish(ROOM, HELLO, |_, _| false).gateways, 0);
    }
}
