//! One control, two gateways, some clients, and everything that goes wrong between them.

use std::sync::{Arc, Mutex};

use gimbal_codec::{Attach, ClientMessageId, SessionKey, ShardId, UserId};
use gimbal_control::command::{Command, Lane, Proof, Reply, ReplyTo, Sender, SessionRef};
use gimbal_control::dedup;
use gimbal_control::error::RequestError;
use gimbal_control::log::EmbeddedLog;
use gimbal_control::store::Store;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::writer::Job;
use gimbal_rpc::link::{Down, Recipient, Tag};
use tokio::sync::oneshot;

use super::faults::{Crash, CrashingLog, Plan};
use super::rng::Rng;
use super::workload::{Client, Wanted};
use crate::support::{Account, Gateway, Node, bare, dump};

const CLIENTS: usize = 6;
const GATEWAYS: u64 = 2;

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) clients: Vec<Client>,
    pub(crate) users: Vec<UserId>,
    /// What happened, for comparing worlds.
    pub(crate) log: Vec<String>,
    /// Messages whose answer was forgotten before their sender had it.
    pub(crate) too_old: u32,
    rng: Rng,
    plan: Plan,
    gateways: Vec<(Lane, Arc<Gateway>)>,
    epoch: u32,
}

type Answer = oneshot::Receiver<Result<Reply, RequestError>>;

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (node, plan) = node_over(store);
        let (clients, users, log, gateways) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut world =
            Self { node, clients, users, log, too_old: 0, rng: Rng::new(seed), plan, gateways, epoch: 1 };
        for at in 0..CLIENTS {
            // Two devices for each second user.
            let user = (at % 3 == 1).then(|| world.users[world.users.len() - 1]);
            let account = world.node.account(user, &format!("secret {at}"));
            if user.is_none() {
                world.users.push(account.user);
            }
            world.clients.push(Client::new(account));
        }
        world.link();
        world
    }

    /// A batch of whatever clients do, perhaps with a crash around its commit.
    pub(crate) fn step(&mut self, step: u32) {
        self.jump();
        let (mut jobs, mut calls) = (Vec::new(), Vec::new());
        for _ in 0..=self.rng.below(12) {
            let at = self.rng.below(CLIENTS as u64) as usize;
            match self.rng.below(10) {
                0..=1 => self.connect(at, &mut jobs),
                2 => self.disconnect(at, &mut jobs),
                3..=5 => self.send_by_session(at, &mut jobs),
                6 => self.acknowledge(at, &mut jobs),
                _ => self.send_by_call(at, &mut jobs, &mut calls),
            }
        }
        if self.rng.chance(20) {
            self.sweep(&mut jobs);
        }
        let crash = match self.rng.below(20) {
            0 => Some(Crash::BeforeCommit),
            1 => Some(Crash::AfterCommit),
            _ => None,
        };
        *self.plan.lock().unwrap() = crash;
        self.log.push(format!("step {step}: {} jobs, {crash:?}, at {}", jobs.len(), self.node.now_ms));
        self.node.run(&mut jobs);
        if crash.is_some() {
            // Whatever the dying process had answered as refused reaches nobody.
            self.restart();
        } else {
            self.hear(calls);
        }
    }

    /// No more faults: every message under way gets its answer.
    pub(crate) fn settle(&mut self) {
        *self.plan.lock().unwrap() = None;
        for at in 0..CLIENTS {
            let Some(wanted) = self.clients[at].wanted.clone() else { continue };
            let account = self.clients[at].account;
            match self.node.ask(send(account, None, &wanted)) {
                Ok(Reply::Sent(result)) => self.clients[at].answered(wanted.id, result.seq),
                Err(RequestError::TooOld) => self.too_old(at, wanted.id),
                other => panic!("without faults a send is answered, not {other:?}"),
            }
        }
    }

    fn jump(&mut self) {
        let by = self.rng.below(2000) as i64;
        self.node.now_ms += if self.rng.chance(10) { -5 * by } else { by / 100 };
    }

    fn connect(&mut self, at: usize, jobs: &mut Vec<Job>) {
        let gateway = self.rng.below(GATEWAYS) as usize;
        let client = &mut self.clients[at];
        client.slot += 1;
        client.online = None;
        let Account { user, device, token } = client.account;
        let (lane, session) = (self.gateways[gateway].0, slot_of(at, client.slot));
        let command = Command::Attach { lane, session, user, device, token, peer: String::new() };
        self.put(jobs, || Job { command, reply_to: ReplyTo::Nobody });
    }

    fn disconnect(&mut self, at: usize, jobs: &mut Vec<Job>) {
        let Some(session) = self.session(at) else { return };
        let client = &mut self.clients[at];
        client.online = None;
        let command = Command::Detach { session, user: client.account.user, device: client.account.device };
        self.put(jobs, || Job { command, reply_to: ReplyTo::Nobody });
    }

    fn send_by_session(&mut self, at: usize, jobs: &mut Vec<Job>) {
        let Some(session) = self.session(at) else { return };
        let wanted = self.clients[at].want(&self.users, &mut self.rng);
        let twice = self.rng.chance(10);
        for _ in 0..=u32::from(twice) {
            let command = send(self.clients[at].account, Some(session), &wanted);
            let tag = Tag { request_id: Default::default(), seq: wanted.id };
            self.put(jobs, || Job { command, reply_to: ReplyTo::Session { session, tag } });
        }
    }

    fn send_by_call(&mut self, at: usize, jobs: &mut Vec<Job>, calls: &mut Vec<(usize, u64, Answer)>) {
        let wanted = self.clients[at].want(&self.users, &mut self.rng);
        let twice = self.rng.chance(20);
        for _ in 0..=u32::from(twice) {
            let (answer, wait) = oneshot::channel();
            let command = send(self.clients[at].account, None, &wanted);
            let before = jobs.len();
            self.put(jobs, || Job { command, reply_to: ReplyTo::Call(answer) });
            // The call, or else its answer, may get lost.
            if jobs.len() > before && !self.rng.chance(10) {
                calls.push((at, wanted.id, wait));
            }
        }
    }

    /// What a sweep of old answers finds whose clock is before or behind the writer's.
    fn sweep(&mut self, jobs: &mut Vec<Job>) {
        let before_ms = self.node.now_ms - 3000 + self.rng.below(12_000) as i64;
        let (found, _) = dedup::aged(&*self.node.store.snapshot(), &[], before_ms, usize::MAX).unwrap();
        for scope in found {
            self.put(jobs, || Job {
                command: Command::Forget { scope, before_ms },
                reply_to: ReplyTo::Nobody,
            });
        }
    }

    /// An id was forgotten, or another that is higher: then its message was stored, before, and it stays so.
    fn too_old(&mut self, at: usize, id: u64) {
        let Some(wanted) = self.clients[at].wanted.take_if(|wanted| wanted.id == id) else { return };
        self.too_old += 1;
        let (messages, _) = self.node.messages(wanted.to, 0);
        let stored = messages.into_iter().filter(|(_, text)| *text == wanted.text).count();
        assert_eq!(stored, 1, "{} was refused as too old", wanted.text);
    }

    fn acknowledge(&mut self, at: usize, jobs: &mut Vec<Job>) {
        let account = self.clients[at].account;
        let seq = gimbal_codec::Seq::new(self.rng.below(40));
        let command = Command::Ack { sender: bare(account), seq };
        self.put(jobs, || Job { command, reply_to: ReplyTo::Nobody });
    }

    /// Into the batch, unless the network loses it.
    fn put(&mut self, jobs: &mut Vec<Job>, job: impl FnOnce() -> Job) {
        if !self.rng.chance(5) {
            jobs.push(job());
        }
    }

    fn session(&self, at: usize) -> Option<SessionRef> {
        let client = &self.clients[at];
        client.online.map(|(lane, attach)| SessionRef { lane, session: slot_of(at, client.slot), attach })
    }

    /// Answers to calls, then what the gateways were given.
    fn hear(&mut self, calls: Vec<(usize, u64, Answer)>) {
        for (at, id, mut wait) in calls {
            match wait.try_recv() {
                Ok(Ok(Reply::Sent(result))) => self.clients[at].answered(id, result.seq),
                Ok(Err(RequestError::TooOld)) => self.too_old(at, id),
                other => panic!("a call without a crash is answered, not {other:?}"),
            }
        }
        self.hear_gateways();
    }

    fn hear_gateways(&mut self) {
        for (lane, gateway) in self.gateways.clone() {
            for item in gateway.take() {
                self.hear_item(lane, item);
            }
        }
    }

    fn hear_item(&mut self, lane: Lane, item: Down) {
        match item {
            Down::SignedIn { session, attach, .. } | Down::Announced { session, attach, .. } => {
                self.set_online(session, Some((lane, attach)));
            }
            Down::Kick { session, .. } | Down::SignInRefused { session, .. } => {
                self.set_online(session, None)
            }
            Down::SendDone { to: (session, _), tag, result: Ok(result) } => {
                let (at, _) = client_of(session);
                self.clients[at].answered(tag.seq, result.seq);
            }
            Down::SendDone { to: (session, _), tag, result: Err(refusal) }
                if refusal == RequestError::TooOld.refusal() =>
            {
                self.too_old(client_of(session).0, tag.seq);
            }
            _ => {}
        }
    }

    /// A session that is no longer the client's newest connection is nobody's.
    fn set_online(&mut self, session: SessionKey, online: Option<(Lane, Attach)>) {
        let (at, slot) = client_of(session);
        if self.clients[at].slot == slot {
            self.clients[at].online = online;
        }
    }

    /// A new life of control over what is durable; the gateways link again and announce, some sessions lost meanwhile.
    fn restart(&mut self) {
        self.epoch += 1;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::from_dump(dump(&*self.node.store), self.epoch));
        let now_ms = self.node.now_ms;
        (self.node, self.plan) = node_over(store);
        self.node.now_ms = now_ms;
        self.link();
        let mut jobs = Vec::new();
        for at in 0..CLIENTS {
            let Some(was) = self.clients[at].online.take() else { continue };
            if self.rng.chance(20) {
                continue;
            }
            let gateway = self.gateways[was.0.0 as usize % GATEWAYS as usize].0;
            let client = &self.clients[at];
            let session = SessionRef { lane: gateway, session: slot_of(at, client.slot), attach: was.1 };
            let Account { user, device, .. } = client.account;
            let command = Command::Announce { session, user, device, peer: String::new() };
            jobs.push(Job { command, reply_to: ReplyTo::Nobody });
        }
        self.node.run(&mut jobs);
        self.hear_gateways();
    }

    fn link(&mut self) {
        self.gateways = (0..GATEWAYS).map(|id| self.node.gateway(id + 1)).collect();
    }
}

fn node_over(store: Arc<dyn Store>) -> (Node, Plan) {
    let plan: Plan = Arc::new(Mutex::new(None));
    let inner = EmbeddedLog::new(Arc::clone(&store));
    let log = CrashingLog { inner, plan: Arc::clone(&plan) };
    (Node::with_log(store, Box::new(log)), plan)
}

fn send(account: Account, session: Option<SessionRef>, wanted: &Wanted) -> Command {
    Command::Send {
        sender: Sender { proof: session.map_or(bare(account).proof, Proof::Session), ..bare(account) },
        client_message_id: ClientMessageId::new(wanted.id),
        to: Recipient::User(wanted.to),
        command: 1,
        content: wanted.text.clone().into(),
    }
}

/// The shard names the client, the index its connection.
fn slot_of(client: usize, slot: u32) -> SessionKey {
    SessionKey::new(ShardId(client as u8), slot, 1)
}

fn client_of(session: SessionKey) -> (usize, u32) {
    (usize::from(session.shard().0), session.index())
}
