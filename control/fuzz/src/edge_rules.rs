//! Whatever backends, devices and gateways send as protobuf, against a control plane with its store in memory. Included by
//! control's tests, too.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use gimbal_codec::{GatewayId, ShardId};
use gimbal_rpc::link::{Control as _, Down, Downlink, Hello, LinkFull, Up, Uplink};
use gimbal_rpc::v1::{
    self, accounts_server::AccountsServer, admin_server::AdminServer, friends_server::FriendsServer,
    messages_server::MessagesServer, presence_server::PresenceServer, rooms_server::RoomsServer,
};
use gimbal_rpc::{gim, link_v1};
use hyper::body::{Body as _, Frame};
use prost::Message;
use tokio::{runtime::Runtime, sync::watch};
use tonic::codegen::{Service, http};
use tonic::{Code, body::Body};

use crate::auth::Gate;
use crate::code::Codes;
use crate::command::{Command, DeviceInfo, NewToken, Reply, TokenHash};
use crate::config::{Checked, Config};
use crate::live::LiveLimits;
use crate::log::EmbeddedLog;
use crate::metrics::Metrics;
use crate::plane::Plane;
use crate::reader::Readers;
use crate::room::Rooms;
use crate::service::Services;
use crate::store::{Store, memory::MemoryStore};
use crate::writer::{self, Writer};

/// Time stands still.
const NOW_MS: i64 = 1_800_000_000_000;
const CALLS_MAX: usize = 24;
/// More than any answer to one small request has.
const ANSWER_FRAMES_MAX: usize = 1_000;
const HELLO: Hello = Hello { gateway: GatewayId::new(1), epoch: 1, shards: 2 };
/// Of the device that everybody may name: user and device 10000.
pub(super) const TOKEN: &str = "0000000000000000000000000000000000000000000000000000000000000007";

/// What is called, and whether bytes are its request at all.
type Method = (&'static str, fn(&[u8]) -> bool);

const fn method<M: Message + Default>(path: &'static str) -> Method {
    (path, |bytes| M::decode(bytes).is_ok())
}

const METHODS: [Method; 31] = [
    method::<v1::RequestCodeRequest>("/gimbal.v1.Accounts/RequestCode"),
    method::<v1::SignInRequest>("/gimbal.v1.Accounts/SignIn"),
    method::<v1::RegisterDeviceRequest>("/gimbal.v1.Accounts/RegisterDevice"),
    method::<v1::RevokeTokenRequest>("/gimbal.v1.Accounts/RevokeToken"),
    method::<v1::RevokeTokensRequest>("/gimbal.v1.Accounts/RevokeTokens"),
    method::<v1::SendRequest>("/gimbal.v1.Messages/Send"),
    method::<v1::PushToUsersRequest>("/gimbal.v1.Messages/PushToUsers"),
    method::<v1::PushToAllRequest>("/gimbal.v1.Messages/PushToAll"),
    method::<v1::SyncRequest>("/gimbal.v1.Messages/Sync"),
    method::<v1::AckRequest>("/gimbal.v1.Messages/Ack"),
    method::<v1::PublishRequest>("/gimbal.v1.Rooms/Publish"),
    method::<v1::PublishRequest>("/gimbal.v1.Rooms/PublishStream"),
    method::<v1::CountRequest>("/gimbal.v1.Rooms/Count"),
    method::<v1::ListSessionsRequest>("/gimbal.v1.Admin/ListSessions"),
    method::<v1::KickRequest>("/gimbal.v1.Admin/Kick"),
    method::<v1::StatsRequest>("/gimbal.v1.Admin/Stats"),
    method::<v1::GetUsersRequest>("/gimbal.v1.Accounts/GetUsers"),
    method::<v1::UpdateUserRequest>("/gimbal.v1.Accounts/UpdateUser"),
    method::<v1::SearchUsersRequest>("/gimbal.v1.Accounts/SearchUsers"),
    method::<v1::ListDevicesRequest>("/gimbal.v1.Accounts/ListDevices"),
    method::<v1::RemoveDeviceRequest>("/gimbal.v1.Accounts/RemoveDevice"),
    method::<v1::AddFriendRequest>("/gimbal.v1.Friends/Add"),
    method::<v1::AgreeFriendRequest>("/gimbal.v1.Friends/Agree"),
    method::<v1::DeclineFriendRequest>("/gimbal.v1.Friends/Decline"),
    method::<v1::SetFriendRequest>("/gimbal.v1.Friends/Set"),
    method::<v1::RemoveFriendRequest>("/gimbal.v1.Friends/Remove"),
    method::<v1::ListFriendsRequest>("/gimbal.v1.Friends/List"),
    method::<v1::BlockRequest>("/gimbal.v1.Friends/Block"),
    method::<v1::UnblockRequest>("/gimbal.v1.Friends/Unblock"),
    method::<v1::ListBlockedRequest>("/gimbal.v1.Friends/ListBlocked"),
    method::<v1::GetPresenceRequest>("/gimbal.v1.Presence/Get"),
];

/// Calls and items of the link, one after the other: what, who, length, bytes. None is answered as a fault of ours.
pub(super) fn check_edge(mut data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    if kind % 4 == 0 {
        return check_conversions(rest);
    }
    let world = World::new();
    let _inside = world.runtime.enter();
    let mut steps = Vec::new();
    while let Some((&[what, who, length], rest)) = data.split_first_chunk() {
        let (bytes, rest) = rest.split_at(rest.len().min(length.into()));
        data = rest;
        steps.push(world.step(METHODS.get(usize::from(what) % 40), who, bytes));
        if steps.len() == CALLS_MAX {
            break;
        }
    }
    // Each begins in its turn and none waits for the one before: what is asked is asked in order.
    world.runtime.block_on(join_all(steps));
    world.end();
}

/// What is read of a link item is what is written of it, as often as one likes.
fn check_conversions(bytes: &[u8]) {
    if let Some(up) = link_v1::Up::decode(bytes).ok().and_then(|up| Up::try_from(up).ok()) {
        assert_eq!(Up::try_from(link_v1::Up::from(up.clone())), Ok(up));
    }
    if let Some(down) = link_v1::Down::decode(bytes).ok().and_then(|down| Down::try_from(down).ok()) {
        assert_eq!(Down::try_from(link_v1::Down::from(down.clone())), Ok(down));
    }
    if let Some(hello) = link_v1::Hello::decode(bytes).ok().and_then(|hello| Hello::try_from(hello).ok()) {
        assert_eq!(Hello::try_from(link_v1::Hello::from(hello)), Ok(hello));
    }
    let _ = (link_v1::UpBatch::decode(bytes), link_v1::DownBatch::decode(bytes));
    let _ = (gim::AuthReply::decode(bytes), v1::AuthenticateReply::decode(bytes));
}

/// What control tells the gateway; all of it can travel.
#[derive(Default)]
struct Told(Mutex<Vec<Down>>);

impl Downlink for Told {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        for down in items.iter() {
            assert_eq!(Down::try_from(link_v1::Down::from(down.clone())).as_ref(), Ok(down));
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(items);
        Ok(())
    }
}

/// One control plane.
struct World {
    runtime: &'static Runtime,
    writer: Writer,
    services: Services,
    uplink: Arc<dyn Uplink>,
    told: Arc<Told>,
    _stop: watch::Sender<bool>,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"))
}

fn checked() -> &'static Checked {
    static CHECKED: OnceLock<Checked> = OnceLock::new();
    CHECKED.get_or_init(|| Config::default().check(true).expect("the defaults are good"))
}

impl World {
    fn new() -> Self {
        let (runtime, checked) = (runtime(), checked());
        let _inside = runtime.enter();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
        let readers = Readers::start(&store, 64).expect("threads");
        let writer =
            Writer::start(store, log, writer::Limits::default(), Box::new(|| NOW_MS)).expect("a thread");
        let metrics = Arc::new(Metrics::new());
        let gate = Arc::new(Gate::new(&checked.config.auth, None, None, Arc::clone(&metrics)));
        let (rooms, limits) = (Arc::new(Rooms::new(1, 100)), LiveLimits::new(checked.config.limits.clone()));
        let plane = Arc::new(Plane::new(writer.clone(), readers, rooms, metrics, limits, gate));
        let told = Arc::new(Told::default());
        let uplink = plane.connect(HELLO, Arc::clone(&told) as Arc<dyn Downlink>);
        let stop = watch::Sender::new(false);
        let services = Services {
            plane,
            keys: checked.keys.clone(),
            codes: Arc::new(Codes::open(checked).expect("no file is named")),
            token_lifetime: checked.config.token_lifetime,
            stop: stop.subscribe(),
        };
        let world = Self { runtime, writer, services, uplink, told, _stop: stop };
        world.register();
        world
    }

    /// The device that everybody may name.
    fn register(&self) {
        let token = NewToken { hash: TokenHash::of(TOKEN.as_bytes()), expires_at_ms: i64::MAX };
        let register =
            Command::RegisterDevice { user: None, device: DeviceInfo::default(), token, idempotency: None };
        let reply = self.runtime.block_on(self.writer.call(register));
        let Ok(Reply::Registered(registered)) = reply else { panic!("{reply:?}") };
        assert_eq!((registered.user.get(), registered.device.get()), (10_000, 10_000));
    }

    async fn step(&self, method: Option<&Method>, who: u8, bytes: &[u8]) {
        match method {
            Some(method) => self.call(method, who, bytes).await,
            None => self.link(bytes),
        }
    }

    async fn call(&self, &(path, is_request): &Method, who: u8, bytes: &[u8]) {
        let request = http::Request::post(path).header("content-type", "application/grpc");
        let request = match who % 4 {
            0 => request,
            1 => request.header("user_id", "10000").header("device_id", "10000").header("token", TOKEN),
            2 => request.header("user_id", "10000").header("authorization", "Bearer dev"),
            _ => request.header("authorization", "Bearer dev"),
        };
        let request = request.body(Body::new(Whole(Some(framed(bytes))))).expect("a request");
        let services = self.services.clone();
        let code = match path.split('/').nth(1) {
            Some("gimbal.v1.Accounts") => code_of(AccountsServer::new(services), request).await,
            Some("gimbal.v1.Messages") => code_of(MessagesServer::new(services), request).await,
            Some("gimbal.v1.Friends") => code_of(FriendsServer::new(services), request).await,
            Some("gimbal.v1.Presence") => code_of(PresenceServer::new(services), request).await,
            Some("gimbal.v1.Rooms") => code_of(RoomsServer::new(services), request).await,
            _ => code_of(AdminServer::new(services), request).await,
        };
        // tonic says so of bytes that are no such message.
        let is_fault = matches!(code, Code::Unknown | Code::DataLoss | Code::DeadlineExceeded)
            || (code == Code::Internal && is_request(bytes));
        assert!(!is_fault, "{path} answers {code:?}");
    }

    fn link(&self, bytes: &[u8]) {
        let Some(up) = link_v1::Up::decode(bytes).ok().and_then(|up| Up::try_from(up).ok()) else { return };
        self.uplink.submit(ShardId(0), &mut vec![up]).expect("there is room for one");
    }

    /// The writer lives, has done all, and keeps order: no user is given a message before the one that precedes it.
    fn end(self) {
        self.writer.stop();
        let told = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = std::collections::BTreeMap::new();
        for down in told.iter() {
            let Down::Deliver { targets, .. } = down else { continue };
            for target in targets.iter().filter(|target| !target.seq.is_none()) {
                let last = given.insert((target.session, target.attach), target.seq.get());
                assert!(last.is_none_or(|last| last + 1 == target.seq.get()), "{last:?}, {target:?}");
            }
        }
    }
}

/// One message in gRPC's frame.
fn framed(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).expect("short"));
    framed.extend_from_slice(bytes);
    framed.freeze()
}

struct Whole(Option<Bytes>);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// What a service answers, once all of it is read.
async fn code_of<S>(mut service: S, request: http::Request<Body>) -> Code
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let Ok(response) = service.call(request).await;
    let (head, mut body) = response.into_parts();
    let mut status = head.headers.get("grpc-status").cloned();
    let mut frames = 0;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frames += 1;
        assert!(frames <= ANSWER_FRAMES_MAX, "an answer has an end");
        let frame = frame.expect("our own answer");
        if let Some(told) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status")) {
            status = Some(told.clone());
        }
    }
    Code::from_bytes(status.expect("an answer ends with its status").as_bytes())
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn edge(data: &[u8]) {
    check_edge(data);
}
