//! Who is online.

use std::{pin::Pin, time::Duration};

use futures_util::StreamExt as _;
use gimbal_codec::UserId;
use gimbal_rpc::v1::{self, presence_server::Presence};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Services, bad, mismatch};
use crate::{
    api_key::Scope,
    command::{Command, Reply, UserPresence},
    error::RequestError,
    front::raised,
    presence::{WATCHED_MAX, Watched, last_seen},
};

/// Users of one call.
const USERS_MAX: usize = 200;
/// Between two messages to one watcher: what changes in it is told together.
const PAUSE: Duration = Duration::from_millis(200);

impl Services {
    async fn presence_of(&self, users: Vec<UserId>) -> Result<v1::GetPresenceReply, RequestError> {
        let reply = self.call(Command::Presence { users }).await?;
        let Reply::Presence(found) = reply else { mismatch(&reply) };
        let find = move |store: &dyn crate::store::Store| {
            let view = store.snapshot();
            found.into_iter().map(|user| Ok(shown(last_seen(&*view, user.user)?, user))).collect()
        };
        Ok(v1::GetPresenceReply { users: self.plane.readers().call(find).await? })
    }
}

#[tonic::async_trait]
impl Presence for Services {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::GetPresenceReply, Status>> + Send>>;

    async fn get(
        &self,
        request: Request<v1::GetPresenceRequest>,
    ) -> Result<Response<v1::GetPresenceReply>, Status> {
        self.actor_or_backend(Scope::Events, request.metadata()).await?;
        let users = named(request.into_inner().user_ids, USERS_MAX, "must be 1 to 200 users")?;
        Ok(Response::new(self.presence_of(users).await?))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchPresenceRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.actor_or_backend(Scope::Events, request.metadata()).await?;
        let users = named(request.into_inner().user_ids, WATCHED_MAX, "must be 1 to 1,000 users")?;
        let watcher = Watched::watch(self.plane.writer().news(), &users).ok_or(RequestError::Busy)?;
        let services = self.clone();
        let changes = futures_util::stream::unfold(
            (services, watcher, false),
            |(services, watcher, later)| async move {
                if later {
                    tokio::time::sleep(PAUSE).await;
                }
                let users = watcher.changed().await;
                let told = services.presence_of(users).await.map_err(Status::from);
                Some((told, (services, watcher, true)))
            },
        );
        Ok(Response::new(Box::pin(changes.take_until(raised(self.stop.clone())))))
    }
}

fn named(ids: Vec<u64>, max: usize, rule: &'static str) -> Result<Vec<UserId>, RequestError> {
    if ids.is_empty() || ids.len() > max {
        return Err(bad("user_ids", rule));
    }
    Ok(ids.into_iter().map(UserId::new).collect())
}

fn shown(last_seen_ms: i64, presence: UserPresence) -> v1::UserPresence {
    let device = |(device, since_ms): (gimbal_codec::DeviceId, i64)| v1::OnlineDevice {
        device_id: device.get(),
        since_ms,
    };
    v1::UserPresence {
        user_id: presence.user.get(),
        online: presence.online.into_iter().map(device).collect(),
        last_seen_ms,
    }
}
