//! The operator's calls.

use gimbal_codec::{DeviceId, MessageId, UserId};
use gimbal_rpc::v1::{self, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{Services, bad, mismatch};
use crate::{
    api_key::Scope,
    command::{Command, Reply, SESSIONS_PAGE_MAX, SessionInfo},
    error::RequestError,
    store::Store,
    trace::read::{Ask, InMailbox, OnDevice, Push, Story, story},
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

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<v1::TraceReply>, Status> {
        self.may(Scope::AdminRead, request.metadata())?;
        let v1::TraceRequest { message_id, user_id, page_size, page_token } = request.into_inner();
        if message_id == 0 {
            return Err(bad("message_id", "must be set").into());
        }
        let ask = Ask {
            message: MessageId::new(message_id),
            user: (user_id != 0).then(|| UserId::new(user_id)),
            after: UserId::new(page_start(&page_token)?),
            limit: super::page_limit(page_size)?,
        };
        let writer = self.plane.writer().clone();
        let read = move |store: &dyn Store| story(writer.trace(), &*store.snapshot(), &ask);
        let story = self.plane.readers().call(read).await?;
        Ok(Response::new(traced(message_id, story)))
    }
}

fn traced(message_id: u64, story: Story) -> v1::TraceReply {
    let Story { body, mailboxes, mailbox_count, next, since_ms } = story;
    let body = body.unwrap_or_default();
    v1::TraceReply {
        message_id,
        from_user: body.from_user.get(),
        from_device: body.from_device.get(),
        command: body.command,
        content_bytes: u32::try_from(body.content.len()).unwrap_or(u32::MAX),
        created_at_ms: body.created_at_ms,
        group_id: body.group.get(),
        group_seq: body.group_seq.get(),
        mailbox_count: u32::try_from(mailbox_count).unwrap_or(u32::MAX),
        since_ms,
        mailboxes: mailboxes.into_iter().map(traced_mailbox).collect(),
        next_page_token: next.map(|user| user.get().to_string()).unwrap_or_default(),
    }
}

fn traced_mailbox(mailbox: InMailbox) -> v1::TracedMailbox {
    let InMailbox { user, seq, released_ms, is_trimmed, devices } = mailbox;
    let device = |device: OnDevice| v1::TracedDevice {
        device_id: device.device.get(),
        outcome: device.outcome(released_ms > 0).text().to_owned(),
        pushes: device.pushes.iter().map(traced_push).collect(),
        answered_at_ms: device.answered_ms,
        passed_at_ms: device.passed_ms,
        acked_at_ms: device.acked_ms,
    };
    v1::TracedMailbox {
        user_id: user.get(),
        seq: seq.get(),
        released_at_ms: released_ms,
        trimmed: is_trimmed,
        devices: devices.into_iter().map(device).collect(),
    }
}

fn traced_push(push: &Push) -> v1::TracedPush {
    v1::TracedPush {
        at_ms: push.at_ms,
        gateway_id: push.gateway.get(),
        session: push.session.to_string(),
        lost: push.lost,
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
