//! Ephemeral broadcast groups.

use std::{pin::Pin, sync::Arc};

use futures_util::{StreamExt as _, future::ready};
use gimbal_codec::RoomId;
use gimbal_rpc::v1::{self, rooms_server::Rooms};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{Services, bad};
use crate::{api_key::Scope, clock, error::RequestError, front::raised, room::Publish};

/// Rooms of one count.
const COUNT_ROOMS_MAX: usize = 1000;
/// Rooms of one answer about the largest.
const TOP_ROOMS_MAX: usize = 1000;

impl Services {
    fn publish_one(&self, request: v1::PublishRequest) -> Result<v1::PublishReply, RequestError> {
        let v1::PublishRequest { room_id, command, content } = request;
        let room = RoomId::new(room_id);
        if room.is_none() {
            return Err(bad("room_id", "must be set"));
        }
        self.plane.check_content(&content)?;
        let from = Default::default();
        let publish = Publish { command, content: &content, from, now_ms: clock::now_ms() };
        let published = self.plane.publish(room, publish);
        Ok(v1::PublishReply {
            room_epoch: published.epoch,
            room_seq: published.seq,
            gateways: published.gateways,
        })
    }
}

#[tonic::async_trait]
impl Rooms for Services {
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<v1::PublishReply, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishReply>, Status> {
        self.may(Scope::Rooms, request.metadata())?;
        Ok(Response::new(self.publish_one(request.into_inner())?))
    }

    /// Ends when the server stops. A publisher that does not read its replies is not read from.
    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        self.may(Scope::Rooms, request.metadata())?;
        let services = self.clone();
        let stopped = raised(self.stop.clone());
        let replies = request.into_inner().map(move |request| Ok(services.publish_one(request?)?));
        // What is refused is told once: a message that is none would be found again by whoever asks on.
        let mut is_refused = false;
        let until_refused = replies.take_while(move |reply: &Result<_, Status>| {
            ready(!std::mem::replace(&mut is_refused, reply.is_err()))
        });
        Ok(Response::new(Box::pin(until_refused.take_until(stopped))))
    }

    async fn count(&self, request: Request<v1::CountRequest>) -> Result<Response<v1::CountReply>, Status> {
        self.may(Scope::Rooms, request.metadata())?;
        let room_ids = request.into_inner().room_ids;
        if !(1..=COUNT_ROOMS_MAX).contains(&room_ids.len()) {
            return Err(bad("room_ids", "must be 1 to 1,000 rooms").into());
        }
        let count =
            |room_id| v1::RoomCount { room_id, members: self.plane.rooms().count(RoomId::new(room_id)) };
        Ok(Response::new(v1::CountReply { rooms: room_ids.into_iter().map(count).collect() }))
    }

    async fn top(&self, request: Request<v1::TopRequest>) -> Result<Response<v1::TopReply>, Status> {
        self.may(Scope::Rooms, request.metadata())?;
        let limit = match request.into_inner().limit {
            0 => 10,
            limit => usize::try_from(limit).unwrap_or(usize::MAX).min(TOP_ROOMS_MAX),
        };
        let plane = Arc::clone(&self.plane);
        // A million rooms take some tens of milliseconds.
        let top = tokio::task::spawn_blocking(move || plane.rooms().top(limit)).await;
        let top = top.map_err(|_| RequestError::Internal)?;
        let count = |(room, members): (RoomId, u64)| v1::RoomCount { room_id: room.get(), members };
        Ok(Response::new(v1::TopReply { rooms: top.into_iter().map(count).collect() }))
    }
}
