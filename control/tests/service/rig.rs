//! A server on free ports in a directory of its own, clients of every role, and gateways that record.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use gimbal_codec::{GatewayId, SessionKey, ShardId};
use gimbal_control::{Config, ControlServer};
use gimbal_rpc::{
    link::{Control as _, Down, Downlink, Hello, LinkFull, Up, Uplink},
    v1::{
        self, accounts_client::AccountsClient, admin_client::AdminClient, messages_client::MessagesClient,
        rooms_client::RoomsClient,
    },
};
use tokio::sync::Notify;
use tonic::{Request, Status, transport::Channel};

/// Longer than anything takes on a busy machine; only a failure waits for it.
pub(super) const WAIT: Duration = Duration::from_secs(30);

pub(super) struct Rig {
    pub(super) server: ControlServer,
    pub(super) channel: Channel,
}

/// Free ports, data below `dir`.
pub(super) fn config(dir: &Path) -> Config {
    Config {
        grpc_listen: "127.0.0.1:0".parse().unwrap(),
        http_listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.join("data"),
        ..Config::default()
    }
}

impl Rig {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::with(config(dir)).await
    }

    pub(super) async fn with(config: Config) -> Self {
        let server = ControlServer::start(config.check(true).unwrap()).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", server.grpc_address())).unwrap();
        Self { channel: channel.connect().await.unwrap(), server }
    }

    pub(super) async fn stop(self) {
        let Self { server, channel } = self;
        drop(channel);
        server.stop(WAIT).await;
    }

    pub(super) fn accounts(&self) -> AccountsClient<Channel> {
        AccountsClient::new(self.channel.clone())
    }

    pub(super) fn messages(&self) -> MessagesClient<Channel> {
        MessagesClient::new(self.channel.clone())
    }

    pub(super) fn rooms(&self) -> RoomsClient<Channel> {
        RoomsClient::new(self.channel.clone())
    }

    pub(super) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// A new user and device, by phone.
    pub(super) async fn person(&self, phone: &str) -> Person {
        let body = v1::SignInRequest { phone_number: phone.into(), code: "any".into(), device: None };
        let reply = self.accounts().sign_in(body).await.unwrap().into_inner();
        Person { user: reply.user_id, device: reply.device_id, token: reply.token }
    }

    /// A gateway in this process.
    pub(super) fn gateway(&self, id: u64) -> Gateway {
        let down = Arc::new(Recording::default());
        let hello = Hello { gateway: GatewayId::new(id), epoch: 1, shards: 2 };
        let up = self.server.plane().connect(hello, Arc::clone(&down) as Arc<dyn Downlink>);
        Gateway { up, down }
    }

    pub(super) async fn http(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(self.server.http_address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

/// A user with a device and its token.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) user: u64,
    pub(super) device: u64,
    pub(super) token: String,
}

impl Person {
    pub(super) fn call<T>(&self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let metadata = request.metadata_mut();
        metadata.insert("user_id", self.user.to_string().parse().unwrap());
        metadata.insert("device_id", self.device.to_string().parse().unwrap());
        metadata.insert("token", self.token.parse().unwrap());
        request
    }

    pub(super) fn sign_in(&self, session: SessionKey) -> Up {
        Up::SignIn {
            session,
            user: gimbal_codec::UserId::new(self.user),
            device: gimbal_codec::DeviceId::new(self.device),
            token: Bytes::from(self.token.clone()),
            cursor: Some(gimbal_codec::Seq::new(0)),
            peer: "192.0.2.1:5".into(),
        }
    }
}

/// A request with a bearer key.
pub(super) fn keyed<T>(key: &str, body: T) -> Request<T> {
    let mut request = Request::new(body);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

/// The stable reason and field of a refusal.
pub(super) fn why(status: &Status) -> (&str, &str) {
    let text = |key| status.metadata().get(key).map_or("", |value| value.to_str().unwrap());
    (text("gimbal-reason"), text("gimbal-field"))
}

pub(super) fn session(index: u32) -> SessionKey {
    SessionKey::new(ShardId(0), index, 1)
}

pub(super) struct Gateway {
    pub(super) up: Arc<dyn Uplink>,
    pub(super) down: Arc<Recording>,
}

impl Gateway {
    pub(super) fn submit(&self, items: Vec<Up>) {
        self.up.submit(ShardId(0), &mut { items }).unwrap();
    }

    pub(super) async fn next(&self) -> Down {
        self.down.next().await
    }
}

/// A gateway's way down that keeps what it gets.
#[derive(Default)]
pub(super) struct Recording {
    items: Mutex<std::collections::VecDeque<Down>>,
    filled: Notify,
}

impl Recording {
    pub(super) async fn next(&self) -> Down {
        let next = async {
            loop {
                if let Some(item) = self.items.lock().unwrap().pop_front() {
                    return item;
                }
                self.filled.notified().await;
            }
        };
        tokio::time::timeout(WAIT, next).await.expect("an item in time")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.lock().unwrap().is_empty()
    }
}

impl Downlink for Recording {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        self.items.lock().unwrap().extend(items.drain(..));
        self.filled.notify_one();
        Ok(())
    }
}
