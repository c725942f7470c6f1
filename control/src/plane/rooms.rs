//! What gateways and backends do with rooms.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use gimbal_codec::{RoomId, ShardId};
use gimbal_rpc::link::{Caller, Down, RoomPlace, Tag};

use super::{Link, Plane, Shared};
use crate::{
    clock,
    command::Lane,
    error::RequestError,
    room::{Publish, Published},
};

impl Plane {
    /// To the members of a room that are online now, in one order for all of them.
    pub fn publish(&self, room: RoomId, publish: Publish<'_>) -> Published {
        let shared = &*self.shared;
        let published =
            shared.rooms.publish(room, publish, |lane, frame| shared.give_room(lane, room, frame));
        shared.count_published(published);
        published
    }
}

impl Shared {
    pub(super) fn interest(&self, link: &Link, room: RoomId, shard: ShardId, members: u32) {
        if self.rooms.interest(link.lane, room, shard, members).is_err() {
            self.metrics.drop_items("rooms_full", 1);
        }
        // The link may have been closed, and its rooms forgotten, just before.
        if link.closed.load(Ordering::SeqCst) {
            self.rooms.forget(link.lane);
        }
    }

    /// The answer comes behind the message itself.
    pub(super) fn publish_by_member(
        &self,
        link: &Link,
        caller: &Caller,
        tag: Tag,
        room: RoomId,
        (command, content): (i32, &[u8]),
    ) {
        let now_ms = clock::now_ms();
        let publish = Publish { command, content, from: (caller.user, caller.device), now_ms };
        let published = self.check_content(content).and_then(|()| {
            self.rooms.publish_by_member(room, publish, |lane, frame| self.give_room(lane, room, frame))
        });
        match published {
            Ok(published) => self.count_published(published),
            Err(RequestError::PublishNotAllowed) => self.metrics.drop_items("room_publish_not_allowed", 1),
            Err(RequestError::Busy) => self.metrics.drop_items("room_publish_over_rate", 1),
            Err(_) => self.metrics.drop_items("room_publish_refused", 1),
        }
        let place = |Published { epoch, seq, .. }| RoomPlace { epoch, seq, created_at_ms: now_ms };
        let result = published.map(place).map_err(RequestError::refusal);
        let to = (caller.session, caller.attach);
        self.give(link, Down::PublishDone { to, tag, result }, "publish_link_full");
    }

    fn give_room(&self, lane: Lane, room: RoomId, frame: Bytes) -> bool {
        // Looked up under the room's lock: a gateway whose interest is seen is linked by then.
        let links = self.links.load();
        let link = links.iter().find(|link| link.lane == lane);
        link.is_some_and(|link| self.give(link, Down::Room { room, frame }, "room_link_full"))
    }

    fn count_published(&self, published: Published) {
        self.metrics.room_publishes.inc();
        self.metrics.room_frames.inc_by(u64::from(published.gateways));
    }
}
