//! One node without threads or clock, and gateways that write down what they are given.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gimbal_codec::{Attach, ClientMessageId, DeviceId, GatewayId, Seq, SessionKey, ShardId, UserId};
use gimbal_control::command::{
    Command, DeviceInfo, IdempotencyKey, Lane, NewToken, Proof, Registered, Reply, ReplyTo, Sender,
    SessionRef, TokenHash,
};
use gimbal_control::error::RequestError;
use gimbal_control::log::{CommandLog, EmbeddedLog};
use gimbal_control::route::policy::Policy;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::store::rocks::{RocksOptions, RocksStore};
use gimbal_control::store::{Scan, Store, Table};
use gimbal_control::writer::{Counters, Engine, Job};
use gimbal_rpc::link::{Down, Downlink, Hello, LinkFull, Recipient, SendResult, Tag};
use tokio::sync::oneshot;

/// Where a test's time begins: Unix milliseconds.
pub(crate) const START_MS: i64 = 1_700_000_000_000;
pub(crate) const TOKEN_LIFE_MS: i64 = 1_000_000;

#[derive(Default)]
pub(crate) struct Gateway {
    items: Mutex<Vec<Down>>,
    calls: Mutex<u32>,
    full: Mutex<bool>,
}

impl Gateway {
    pub(crate) fn take(&self) -> Vec<Down> {
        std::mem::take(&mut self.items.lock().unwrap())
    }

    pub(crate) fn calls(&self) -> u32 {
        *self.calls.lock().unwrap()
    }

    pub(crate) fn set_full(&self, full: bool) {
        *self.full.lock().unwrap() = full;
    }
}

impl Downlink for Gateway {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        *self.calls.lock().unwrap() += 1;
        if *self.full.lock().unwrap() {
            return Err(LinkFull);
        }
        self.items.lock().unwrap().append(items);
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) counters: Arc<Counters>,
    pub(crate) now_ms: i64,
    lanes: u32,
}

/// A device of a user, with the token it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    pub(crate) token: TokenHash,
}

impl Node {
    pub(crate) fn memory() -> Self {
        Self::over(Arc::new(MemoryStore::new()))
    }

    pub(crate) fn rocks(path: &Path) -> Self {
        Self::over(Arc::new(open(path)))
    }

    pub(crate) fn over(store: Arc<dyn Store>) -> Self {
        let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
        Self::with_log(store, log)
    }

    pub(crate) fn with_log(store: Arc<dyn Store>, log: Box<dyn CommandLog>) -> Self {
        Self::with_policy(store, log, Policy::all())
    }

    pub(crate) fn with_policy(store: Arc<dyn Store>, log: Box<dyn CommandLog>, devices: Policy) -> Self {
        let counters = Arc::new(Counters::default());
        let engine = Engine::new(Arc::clone(&store), log, Arc::clone(&counters), devices);
        Self { store, engine, counters, now_ms: START_MS, lanes: 0 }
    }

    /// One batch; answers in order.
    pub(crate) fn turn(&mut self, commands: Vec<Command>) -> Vec<Result<Reply, RequestError>> {
        let mut waits = Vec::new();
        let mut jobs = Vec::new();
        for command in commands {
            let (answer, wait) = oneshot::channel();
            jobs.push(Job { command, reply_to: ReplyTo::Call(answer) });
            waits.push(wait);
        }
        self.run(&mut jobs);
        waits.into_iter().map(|mut wait| wait.try_recv().unwrap_or(Ok(Reply::Done))).collect()
    }

    pub(crate) fn run(&mut self, jobs: &mut Vec<Job>) {
        while !jobs.is_empty() {
            self.engine.turn(jobs, self.now_ms);
        }
        self.engine.routes().check();
    }

    pub(crate) fn ask(&mut self, command: Command) -> Result<Reply, RequestError> {
        self.turn(vec![command]).remove(0)
    }

    pub(crate) fn gateway(&mut self, id: u64) -> (Lane, Arc<Gateway>) {
        self.lanes += 1;
        let (lane, gateway) = (Lane(self.lanes), Arc::new(Gateway::default()));
        let hello = Hello { gateway: GatewayId::new(id), epoch: u64::from(self.lanes), shards: 2 };
        let down: Arc<dyn Downlink> = Arc::clone(&gateway) as Arc<dyn Downlink>;
        self.ask(Command::GatewayUp { lane, hello, down }).unwrap();
        (lane, gateway)
    }

    /// A user with one device, or one more device of a user.
    pub(crate) fn account(&mut self, user: Option<UserId>, secret: &str) -> Account {
        let token = new_token(secret, self.now_ms);
        let command =
            Command::RegisterDevice { user, device: DeviceInfo::default(), token, idempotency: None };
        let Registered { user, device, .. } = registered(self.ask(command));
        Account { user, device, token: token.hash }
    }

    pub(crate) fn send(
        &mut self,
        from: Account,
        id: u64,
        to: UserId,
        text: &str,
    ) -> Result<SendResult, RequestError> {
        match self.ask(send(from, id, to, text))? {
            Reply::Sent(result) => Ok(result),
            reply => panic!("not {reply:?}"),
        }
    }

    /// Everything a user's mailbox holds after `after`, and its newest seq.
    pub(crate) fn messages(&self, user: UserId, after: u64) -> (Vec<(u64, String)>, u64) {
        let (mut all, mut from) = (Vec::new(), Seq::new(after));
        loop {
            let page = self.store.page(user, from, 7, 1 << 20).unwrap();
            assert_eq!(page.has_more, page.end < page.latest);
            let text = |content: &Bytes| String::from_utf8_lossy(content).into_owned();
            all.extend(page.entries.iter().map(|(seq, body)| (seq.get(), text(&body.content))));
            if !page.has_more {
                return (all, page.latest.get());
            }
            from = page.end;
        }
    }

    pub(crate) fn attach(&mut self, lane: Lane, slot: u32, account: Account) {
        self.ask(attach(lane, slot, account)).unwrap();
    }
}

pub(crate) fn open(path: &Path) -> RocksStore {
    RocksStore::open(path, small_rocks()).unwrap()
}

pub(crate) fn small_rocks() -> RocksOptions {
    RocksOptions { block_cache_bytes: 8 << 20, write_buffer_bytes: 8 << 20 }
}

pub(crate) fn new_token(secret: &str, now_ms: i64) -> NewToken {
    NewToken { hash: TokenHash::of(secret.as_bytes()), expires_at_ms: now_ms + TOKEN_LIFE_MS }
}

pub(crate) fn registered(reply: Result<Reply, RequestError>) -> Registered {
    match reply {
        Ok(Reply::Registered(registered)) => registered,
        reply => panic!("not {reply:?}"),
    }
}

pub(crate) fn key(text: &str) -> Option<IdempotencyKey> {
    IdempotencyKey::parse(text).unwrap()
}

pub(crate) fn bare(account: Account) -> Sender {
    Sender { user: account.user, device: account.device, proof: Proof::Token(account.token) }
}

pub(crate) fn send(from: Account, id: u64, to: UserId, text: &str) -> Command {
    Command::Send {
        sender: bare(from),
        client_message_id: ClientMessageId::new(id),
        to: Recipient::User(to),
        command: 7,
        content: Bytes::copy_from_slice(text.as_bytes()),
    }
}

pub(crate) fn push(users: &[UserId], text: &str, idempotency: &str) -> Command {
    Command::Push {
        users: users.to_vec(),
        command: 9,
        content: Bytes::copy_from_slice(text.as_bytes()),
        transient: false,
        idempotency: key(idempotency),
    }
}

pub(crate) fn slot(index: u32) -> SessionKey {
    SessionKey::new(ShardId(0), index, 1)
}

pub(crate) fn attach(lane: Lane, index: u32, account: Account) -> Command {
    let Account { user, device, token } = account;
    Command::Attach { lane, session: slot(index), user, device, token, peer: "192.0.2.1:5000".into() }
}

pub(crate) fn session(lane: Lane, index: u32, attach: Attach) -> SessionRef {
    SessionRef { lane, session: slot(index), attach }
}

pub(crate) fn session_send(account: Account, at: SessionRef, id: u64, to: UserId, text: &str) -> Job {
    let mut command = send(account, id, to, text);
    if let Command::Send { sender, .. } = &mut command {
        sender.proof = Proof::Session(at);
    }
    let tag = Tag { request_id: Bytes::from_static(b"r"), seq: id };
    Job { command, reply_to: ReplyTo::Session { session: at, tag } }
}

/// The attach number that the last sign-in of these was given.
pub(crate) fn signed_in(items: &[Down]) -> Attach {
    let attach = items.iter().rev().find_map(|item| match item {
        Down::SignedIn { attach, .. } => Some(*attach),
        _ => None,
    });
    attach.expect("a session was signed in")
}

/// All tables, in order.
pub(crate) fn dump(store: &dyn Store) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let view = store.snapshot();
    for table in Table::ALL {
        let mut show = |key: &[u8], value: &[u8]| {
            all.push((table, key.to_vec(), value.to_vec()));
            Ok(Scan::Continue)
        };
        view.scan(table, &[], &[0xff; 2], &mut show).unwrap();
    }
    all
}
