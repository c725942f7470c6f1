//! Stored messages, and pushes.

use std::sync::Arc;

use gimbal_codec::{ClientMessageId, GroupId, Seq, UserId, limits};
use gimbal_rpc::{
    link::{Body, Recipient},
    v1::{self, messages_server::Messages},
};
use tonic::{Request, Response, Status};

use super::{Services, bad, mismatch};
use crate::{
    api_key::Scope,
    clock,
    command::{Command, IdempotencyKey, PUSH_USERS_MAX, Pushed, Reply},
    error::RequestError,
    store::Store,
};

/// Contents in one page over gRPC; well below the 4 MiB that gRPC clients accept by default.
const PAGE_BYTES_MAX: usize = 1 << 20;

#[tonic::async_trait]
impl Messages for Services {
    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<v1::SendReply>, Status> {
        let sender = self.sender(request.metadata()).await?;
        let v1::SendRequest { client_message_id, to_user, command, content, to_group } = request.into_inner();
        if client_message_id == 0 {
            return Err(bad("client_message_id", "must be at least 1").into());
        }
        let to = match (to_user, to_group) {
            (user, 0) => Recipient::User(UserId::new(user)),
            (0, group) => Recipient::Group(GroupId::new(group)),
            _ => return Err(bad("to_group", "must not be beside to_user").into()),
        };
        self.plane.check_content(&content)?;
        let send = Command::Send {
            sender,
            client_message_id: ClientMessageId::new(client_message_id),
            to,
            command,
            content,
        };
        match self.call(send).await? {
            Reply::Sent(sent) => Ok(Response::new(v1::SendReply {
                message_id: sent.message_id.get(),
                seq: sent.seq.get(),
                created_at_ms: sent.created_at_ms,
                duplicate: sent.duplicate,
            })),
            other => mismatch(&other),
        }
    }

    async fn push_to_users(
        &self,
        request: Request<v1::PushToUsersRequest>,
    ) -> Result<Response<v1::PushToUsersReply>, Status> {
        self.may(Scope::Messages, request.metadata())?;
        let v1::PushToUsersRequest { user_ids, command, content, transient, idempotency_key } =
            request.into_inner();
        if !(1..=PUSH_USERS_MAX).contains(&user_ids.len()) {
            return Err(bad("user_ids", "must be 1 to 512 users").into());
        }
        self.plane.check_content(&content)?;
        let push = Command::Push {
            users: user_ids.into_iter().map(UserId::new).collect(),
            command,
            content,
            transient,
            idempotency: IdempotencyKey::parse(&idempotency_key)?,
        };
        match self.call(push).await? {
            Reply::Pushed(pushed) => Ok(Response::new(pushed_reply(pushed))),
            other => mismatch(&other),
        }
    }

    async fn push_to_all(
        &self,
        request: Request<v1::PushToAllRequest>,
    ) -> Result<Response<v1::PushToAllReply>, Status> {
        self.may(Scope::Messages, request.metadata())?;
        let v1::PushToAllRequest { command, content, per_second } = request.into_inner();
        self.plane.check_content(&content)?;
        let gateways = self.plane.push_all(command, &content, clock::now_ms(), per_second);
        Ok(Response::new(v1::PushToAllReply { gateways }))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Result<Response<v1::SyncReply>, Status> {
        let v1::SyncRequest { after, limit } = *request.get_ref();
        if limit > limits::SYNC_LIMIT_MAX {
            return Err(bad("limit", "must be at most 500").into());
        }
        let after = Seq::new(after);
        let read = move |store: &dyn Store, user, device| {
            Ok((store.page(user, after, limit, PAGE_BYTES_MAX)?, user, device))
        };
        let (page, user, device) = self.read(request.metadata(), read).await?;
        self.plane.writer().trace().note_page(user, device, (after, page.end), clock::now_ms());
        Ok(Response::new(v1::SyncReply {
            latest: page.latest.get(),
            has_more: page.has_more,
            trimmed_to: page.trimmed_to.get(),
            messages: page.entries.into_iter().map(message).collect(),
        }))
    }

    async fn ack(&self, request: Request<v1::AckRequest>) -> Result<Response<v1::AckReply>, Status> {
        let sender = self.sender(request.metadata()).await?;
        let seq = Seq::new(request.into_inner().seq);
        let ack = Command::Ack { sender, seq };
        match self.call(ack).await? {
            Reply::Acked(seq) => Ok(Response::new(v1::AckReply { seq: seq.get() })),
            other => mismatch(&other),
        }
    }
}

fn message((seq, body): (Seq, Arc<Body>)) -> v1::Message {
    v1::Message {
        seq: seq.get(),
        message_id: body.message_id.get(),
        from_user: body.from_user.get(),
        from_device: body.from_device.get(),
        command: body.command,
        content: body.content.clone(),
        created_at_ms: body.created_at_ms,
        group_id: body.group.get(),
        group_seq: body.group_seq.get(),
    }
}

fn pushed_reply(pushed: Pushed) -> v1::PushToUsersReply {
    let user = |(user, result): (UserId, Result<Seq, RequestError>)| {
        let (seq, reason) = match result {
            Ok(seq) => (seq.get(), ""),
            Err(error) => (0, error.reason()),
        };
        v1::PushedUser { user_id: user.get(), seq, reason: reason.to_owned() }
    };
    v1::PushToUsersReply {
        message_id: pushed.message_id.get(),
        users: pushed.users.into_iter().map(user).collect(),
    }
}
