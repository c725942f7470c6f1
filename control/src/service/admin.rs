//! The operator's calls.

use gimbal_codec::{DeviceId, UserId};
use gimbal_rpc::v1::{self, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{Services, bad, mismatch};
use crate::{
    api_key::Scope,
    command::{Command, Reply, SESSIONS_PAGE_MAX, SessionInfo},
    error::RequestError,
};

const PAGE_SIZE_DEFAULT: usize = 100;

#[tonic::async_trait]
impl Admin for Services {
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsReply>, Status> {
        self.may(Scope::AdminRead, request.metadata())?;
        let v1::ListSessionsRequest { user_id, page_size, page_token } = request.into_inner();
        let list = Command::ListSessions {
            user: (user_id != 0).then(|| UserId::new(user_id)),
            from: page_start(&page_token)?,
            limit: page_limit(page_size)?,
        };
        match self.call(list).await? {
            Reply::Sessions(page) => Ok(Response::new(v1::ListSessionsReply {
                sessions: page.sessions.into_iter().map(session).collect(),
                next_page_token: page.next.map(|next| next.to_string()).unwrap_or_default(),
            })),
            other => mismatch(&other),
        }
    }

    async fn kick(&self, request: Request<v1::KickRequest>) -> Result<Response<v1::KickReply>, Status> {
        self.may(Scope::Admin, request.metadata())?;
        let v1::KickRequest { user_id, device_id } = request.into_inner();
        if user_id == 0 {
            return Err(bad("user_id", "must be set").into());
        }
        let device = (device_id != 0).then(|| DeviceId::new(device_id));
        match self.call(Command::Kick { user: UserId::new(user_id), device }).await? {
            Reply::Kicked(kicked) => Ok(Response::new(v1::KickReply { kicked })),
            other => mismatch(&other),
        }
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsReply>, Status> {
        self.may(Scope::AdminRead, request.metadata())?;
        match self.call(Command::Stats).await? {
            Reply::Stats(stats) => Ok(Response::new(v1::StatsReply {
                sessions: stats.sessions,
                users_online: stats.users_online,
                gateways: stats.gateways,
                rooms: self.plane.rooms().len() as u64,
                commands: stats.commands,
                commits: stats.commits,
                wal_syncs: stats.wal_syncs,
                sends: stats.sends,
                control_epoch: u64::from(stats.control_epoch),
            })),
            other => mismatch(&other),
        }
    }
}

fn page_start(token: &str) -> Result<u64, RequestError> {
    if token.is_empty() {
        return Ok(0);
    }
    token.parse().map_err(|_| bad("page_token", "must be the last page's next_page_token"))
}

fn page_limit(size: u32) -> Result<usize, RequestError> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(PAGE_SIZE_DEFAULT),
        size if size <= SESSIONS_PAGE_MAX => Ok(size),
        _ => Err(bad("page_size", "must be at most 1,000")),
    }
}

fn session(info: SessionInfo) -> v1::Session {
    v1::Session {
        user_id: info.user.get(),
        device_id: info.device.get(),
        gateway_id: info.gateway.get(),
        session: info.session.to_string(),
        attach: info.attach.get(),
        attached_at_ms: info.attached_at_ms,
        peer: info.peer,
    }
}
