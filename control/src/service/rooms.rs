//! Ephemeral broadcast groups.

use gimbal_codec::RoomId;
use gimbal_rpc::v1::{self, rooms_server::Rooms};
use tonic::{Request, Response, Status};

use super::{Services, bad};
use crate::{clock, credential::Role, room::Publish};

/// Rooms of one count.
const COUNT_ROOMS_MAX: usize = 1000;

#[tonic::async_trait]
impl Rooms for Services {
    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishReply>, Status> {
        self.role(Role::Backend, request.metadata())?;
        let v1::PublishRequest { room_id, command, content } = request.into_inner();
        let room = RoomId::new(room_id);
        if room.is_none() {
            return Err(bad("room_id", "must be set").into());
        }
        self.plane.check_content(&content)?;
        let publish = Publish { command, content: &content, now_ms: clock::now_ms() };
        let published = self.plane.publish(room, publish);
        Ok(Response::new(v1::PublishReply {
            room_epoch: published.epoch,
            room_seq: published.seq,
            gateways: published.gateways,
        }))
    }

    async fn count(&self, request: Request<v1::CountRequest>) -> Result<Response<v1::CountReply>, Status> {
        self.role(Role::Backend, request.metadata())?;
        let room_ids = request.into_inner().room_ids;
        if !(1..=COUNT_ROOMS_MAX).contains(&room_ids.len()) {
            return Err(bad("room_ids", "must be 1 to 1,000 rooms").into());
        }
        let count =
            |room_id| v1::RoomCount { room_id, members: self.plane.rooms().count(RoomId::new(room_id)) };
        Ok(Response::new(v1::CountReply { rooms: room_ids.into_iter().map(count).collect() }))
    }
}
