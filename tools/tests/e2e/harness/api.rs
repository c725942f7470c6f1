//! The gRPC calls, blocking.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use gimbal_codec::{DeviceId, UserId};
use gimbal_rpc::v1::{self as pb, accounts_client, admin_client, messages_client, rooms_client};
use tokio::runtime::Runtime;
use tonic::{Request, Status, transport::Channel};

use super::{PATIENCE, server::until};

/// One signed-in device with its token.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    pub(crate) token: String,
}

/// What `--dev` takes as backend and admin key.
const DEV_KEY: &str = "dev";

/// A channel to control and a runtime to drive it.
pub(crate) struct Api {
    runtime: Runtime,
    channel: Channel,
}

impl Api {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().timeout(PATIENCE);
        let mut channel = None;
        until(|| {
            channel = runtime.block_on(endpoint.connect()).ok();
            channel.is_some()
        });
        Self { runtime, channel: channel.expect("gRPC answers") }
    }

    /// A new phone number, in this process at least.
    pub(crate) fn phone() -> String {
        static NEXT: AtomicU64 = AtomicU64::new(13_000_000_000);
        NEXT.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// A new user with one device.
    pub(crate) fn device(&self) -> Device {
        self.device_of(&Self::phone())
    }

    /// A new device of the user with that phone number.
    pub(crate) fn device_of(&self, phone: &str) -> Device {
        let request = pb::SignInRequest {
            phone_number: phone.to_owned(),
            code: "0000".to_owned(),
            device: Some(pb::Device { model: "test".to_owned(), ..pb::Device::default() }),
        };
        let mut accounts = accounts_client::AccountsClient::new(self.channel.clone());
        let reply = self.runtime.block_on(accounts.sign_in(request)).unwrap().into_inner();
        Device {
            user: UserId::new(reply.user_id),
            device: DeviceId::new(reply.device_id),
            token: reply.token,
        }
    }

    /// What the caller of `device`'s token would send.
    pub(crate) fn send(&self, device: &Device, request: pb::SendRequest) -> Result<pb::SendReply, Status> {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        Ok(self.runtime.block_on(messages.send(as_device(device, request)))?.into_inner())
    }

    pub(crate) fn sync(&self, device: &Device, after: u64) -> Result<pb::SyncReply, Status> {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        let request = as_device(device, pb::SyncRequest { after, limit: 0 });
        Ok(self.runtime.block_on(messages.sync(request))?.into_inner())
    }

    /// The whole mailbox, page by page.
    pub(crate) fn mailbox(&self, device: &Device) -> Vec<pb::Message> {
        let mut all: Vec<pb::Message> = Vec::new();
        loop {
            let page = self.sync(device, all.last().map_or(0, |message| message.seq)).unwrap();
            all.extend(page.messages);
            if !page.has_more {
                return all;
            }
        }
    }

    pub(crate) fn ack(&self, device: &Device, seq: u64) -> Result<u64, Status> {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        Ok(self.runtime.block_on(messages.ack(as_device(device, pb::AckRequest { seq })))?.into_inner().seq)
    }

    pub(crate) fn push_to_users(
        &self,
        request: pb::PushToUsersRequest,
    ) -> Result<pb::PushToUsersReply, Status> {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        Ok(self.runtime.block_on(messages.push_to_users(as_backend(request)))?.into_inner())
    }

    pub(crate) fn push_to_all(&self, content: &[u8]) -> pb::PushToAllReply {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        let request = pb::PushToAllRequest { command: 7, content: content.to_vec().into(), per_second: 0 };
        self.runtime.block_on(messages.push_to_all(as_backend(request))).unwrap().into_inner()
    }

    pub(crate) fn publish(&self, room: u64, content: &[u8]) -> pb::PublishReply {
        let mut rooms = rooms_client::RoomsClient::new(self.channel.clone());
        let request = pb::PublishRequest { room_id: room, command: 3, content: content.to_vec().into() };
        self.runtime.block_on(rooms.publish(as_backend(request))).unwrap().into_inner()
    }

    pub(crate) fn revoke(&self, device: &Device) -> bool {
        let mut accounts = accounts_client::AccountsClient::new(self.channel.clone());
        let request = pb::RevokeTokenRequest {
            user_id: device.user.get(),
            device_id: device.device.get(),
            idempotency_key: String::new(),
        };
        self.runtime.block_on(accounts.revoke_token(as_backend(request))).unwrap().into_inner().revoked
    }

    pub(crate) fn kick(&self, user: UserId) -> u32 {
        let mut admin = admin_client::AdminClient::new(self.channel.clone());
        let request = as_backend(pb::KickRequest { user_id: user.get(), device_id: 0 });
        self.runtime.block_on(admin.kick(request)).unwrap().into_inner().kicked
    }

    /// Members of a room, as control counts them.
    pub(crate) fn members(&self, room: u64) -> u64 {
        let mut rooms = rooms_client::RoomsClient::new(self.channel.clone());
        let request = pb::CountRequest { room_ids: vec![room] };
        self.runtime.block_on(rooms.count(as_backend(request))).unwrap().into_inner().rooms[0].members
    }

    pub(crate) fn sessions(&self, user: UserId) -> Vec<pb::Session> {
        let mut admin = admin_client::AdminClient::new(self.channel.clone());
        let request = pb::ListSessionsRequest { user_id: user.get(), ..pb::ListSessionsRequest::default() };
        self.runtime.block_on(admin.list_sessions(as_backend(request))).unwrap().into_inner().sessions
    }

    /// A call without any credential.
    pub(crate) fn send_unauthenticated(&self) -> Status {
        let mut messages = messages_client::MessagesClient::new(self.channel.clone());
        self.runtime.block_on(messages.send(pb::SendRequest::default())).unwrap_err()
    }
}

fn as_device<T>(device: &Device, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("user_id", device.user.get().into());
    metadata.insert("device_id", device.device.get().into());
    metadata.insert("token", device.token.parse().unwrap());
    request
}

fn as_backend<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {DEV_KEY}").parse().unwrap());
    request
}
