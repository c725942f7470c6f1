//! One turn of the writer: admit, execute, commit, release. Without thread or clock, so that a simulation can drive it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use gimbal_codec::{Attach, CloseReason, DeviceId, GroupId, Seq, SessionKey, UserId};
use gimbal_rpc::link::{Body, Down, Grant, Refusal, SendResult};

use super::{Counters, Job};
use crate::command::{Admitted, Command, Lane, Reply, ReplyTo, SESSIONS_PAGE_MAX, Sender, SessionRef, Stats};
use crate::error::RequestError;
use crate::event::{Kinds, News};
use crate::executor::{Effect, Executor, Output, Sessions};
use crate::group;
use crate::log::{CommandLog, Record};
use crate::partition::Partition;
use crate::route::policy::Policy;
use crate::route::{Announced, Arrival, Attached, Routes};
use crate::store::key::OfDevice;
use crate::store::value::{DeviceRecord, Value as _};
use crate::store::{Store, StoreError, Table};
use crate::trace::{Record as Traced, Trace};

/// Executor, routes and log of one life of control.
pub struct Engine {
    executor: Executor,
    routes: Routes,
    log: Box<dyn CommandLog>,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    news: Arc<News>,
    trace: Arc<Trace>,
    /// So many of the routes' changes were told.
    told: usize,
    /// When the batch under way was released, Unix milliseconds.
    released_ms: i64,
    /// A commit failed: the executor's cache may hold what is not on disk, so nothing is executed any more.
    failed: bool,
    /// Groups whose messages are on their way, each once, the one next that waits longest.
    fan_outs: VecDeque<GroupId>,
}

/// A batch that was executed: what it came to, to be committed and then released.
pub struct Executed {
    jobs: Vec<Job>,
    /// One for each job.
    outputs: Vec<Output>,
    records: Vec<(Partition, Record)>,
    /// Groups whose messages have a next batch once this one is committed.
    opened: Vec<GroupId>,
    now_ms: i64,
}

enum Admission {
    Execute,
    Refuse(RequestError),
    /// In the next turn: it depends on what this one does to its session.
    Wait,
}

/// Whose sessions a batch has begun or ended so far: the routes know it only after the commit.
#[derive(Default)]
struct Touched {
    devices: HashSet<DeviceId>,
    users: HashSet<UserId>,
}

impl Touched {
    fn add(&mut self, command: &Command, output: &Output) {
        match output.effect {
            Effect::Kick { device, .. } => drop(self.devices.insert(device)),
            Effect::KickOlder { user, .. } => drop(self.users.insert(user)),
            _ => {}
        }
        match command {
            Command::Attach { device, .. }
            | Command::Announce { device, .. }
            | Command::Detach { device, .. }
            | Command::Kick { device: Some(device), .. } => drop(self.devices.insert(*device)),
            Command::Kick { user, device: None } => drop(self.users.insert(*user)),
            Command::AttachVouched { vouched, .. } => drop(self.devices.insert(vouched.device)),
            _ => {}
        }
    }

    fn holds(&self, sender: Sender) -> bool {
        self.devices.contains(&sender.device) || self.users.contains(&sender.user)
    }
}

impl Engine {
    /// For the life that began when `store` was opened.
    pub fn new(
        store: Arc<dyn Store>,
        log: Box<dyn CommandLog>,
        counters: Arc<Counters>,
        devices: Policy,
    ) -> Self {
        let epoch = store.control_epoch();
        let (executor, routes) = (Executor::new(epoch), Routes::new(epoch, devices));
        let fan_outs = group::open(&*store).unwrap_or_else(|error| {
            tracing::error!(%error, "messages that were on their way to groups wait for another restart");
            Vec::new()
        });
        Self {
            executor,
            routes,
            log,
            store,
            counters,
            news: Arc::default(),
            trace: Arc::new(Trace::new(0)),
            told: 0,
            released_ms: 0,
            failed: false,
            fan_outs: fan_outs.into(),
        }
    }

    /// Which kinds of events are written from now on.
    pub fn set_kinds(&mut self, kinds: Kinds) {
        self.executor.set_kinds(kinds);
    }

    /// Whether users take messages of friends only from now on.
    pub fn set_friends_only(&mut self, friends_only: bool) {
        self.executor.set_friends_only(friends_only);
    }

    /// Where it is written what happened to messages, from now on.
    pub fn set_trace(&mut self, trace: Arc<Trace>) {
        self.trace = trace;
    }

    /// What others are told after a commit.
    pub fn news(&self) -> &Arc<News> {
        &self.news
    }

    /// Whether sessions began or ended that the event stream does not have yet.
    pub fn has_changes(&self) -> bool {
        !self.failed && !self.routes.changes().is_empty()
    }

    /// Writes them, without waiting for a command that writes anything.
    pub fn flush_changes(&mut self, now_ms: i64) {
        if !self.has_changes() {
            return;
        }
        let mut flushed = self.run(&[], now_ms, true);
        self.commit(&mut flushed);
        self.tell();
    }

    /// What is committed is told, and whose presence has changed.
    fn tell(&mut self) {
        let changes = self.routes.changes();
        self.news.watched.change(changes[self.told..].iter().map(|change| change.user));
        self.told = changes.len();
        if self.routes.take_lost() {
            self.news.lost.notify_one();
        }
        let newest = self.executor.newest_event();
        if !self.failed && *self.news.newest.borrow() != newest {
            self.news.newest.send_replace(newest);
        }
    }

    /// The next batch of a message that is on its way to a group, to be executed with whatever else waits: at most one for
    /// each turn, and groups take turns, so that nobody waits for more than one of them.
    pub fn next_fan_out(&mut self) -> Option<Job> {
        let group = self.fan_outs.pop_front()?;
        self.counters.fan_outs.add(1);
        Some(Job { command: Command::FanOut { group }, reply_to: ReplyTo::Nobody })
    }

    /// Whether [`Self::next_fan_out`] has one.
    pub fn has_fan_out(&self) -> bool {
        !self.fan_outs.is_empty()
    }

    /// One batch from its begin to its end: [`Self::execute`], [`Self::commit`], [`Self::release`].
    pub fn turn(&mut self, jobs: &mut Vec<Job>, now_ms: i64) {
        let mut batch = self.execute(jobs, now_ms);
        self.commit(&mut batch);
        self.release(batch, now_ms);
    }

    /// Executes a prefix of `jobs` (all of them, as a rule, and one at least) as one batch and takes it out. Commands
    /// whose callers have given up waiting are removed and not executed.
    pub fn execute(&mut self, jobs: &mut Vec<Job>, now_ms: i64) -> Executed {
        let waiting = jobs.len();
        jobs.retain(|job| !job.reply_to.is_given_up());
        self.counters.given_up.add((waiting - jobs.len()) as u64);
        let mut executed = if self.failed {
            let outputs = refuse_all(jobs);
            Executed { jobs: Vec::new(), outputs, records: Vec::new(), opened: Vec::new(), now_ms }
        } else {
            self.run(jobs, now_ms, false)
        };
        let rest = jobs.split_off(executed.outputs.len());
        executed.jobs = std::mem::replace(jobs, rest);
        executed
    }

    /// Makes what the batch changed durable; nothing is committed when nothing changed. After a failure all of the batch
    /// is refused, and all that follows.
    pub fn commit(&mut self, batch: &mut Executed) {
        if batch.records.is_empty() {
            return;
        }
        match self.log.commit(std::mem::take(&mut batch.records)) {
            Ok(()) => self.counters.commits.add(1),
            Err(error) => {
                tracing::error!(%error, "refusing everything from now on");
                self.failed = true;
                batch.opened.clear();
                self.fan_outs.clear();
                batch.outputs = refuse_all(&batch.jobs);
            }
        }
    }

    /// Answers and deliveries leave, in the order of the jobs. Only after [`Self::commit`]. `released_ms` is the time now,
    /// Unix milliseconds.
    pub fn release(&mut self, batch: Executed, released_ms: i64) {
        let Executed { jobs, outputs, records, opened, now_ms } = batch;
        self.fan_outs.extend(opened);
        assert!(records.is_empty(), "answers leave after the commit");
        if jobs.is_empty() {
            return;
        }
        self.routes.set_time(now_ms);
        self.released_ms = released_ms;
        let traced = self.trace.pen().map_or(0, |pen| pen.count());
        self.counters.batches.add(1);
        self.counters.commands.add(outputs.len() as u64);
        for (job, output) in jobs.into_iter().zip(outputs) {
            self.answer(job, output, now_ms);
        }
        let lose = |gateway| self.trace.pen().into_iter().for_each(|mut pen| pen.lose(traced, gateway));
        self.counters.link_full.add(self.routes.flush(lose));
        self.counters.online.set(self.routes.counts());
        self.counters.online.set_fan_outs(self.fan_outs.len());
        self.tell();
    }

    /// The routes, for inspection.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Its jobs are still the caller's.
    fn run(&mut self, jobs: &[Job], now_ms: i64, is_forced: bool) -> Executed {
        let mut outputs = Vec::with_capacity(jobs.len());
        let mut touched = Touched::default();
        let (view, routes) = (Arc::clone(&self.store), &self.routes);
        let is_online = |user| routes.is_online(user);
        let sessions =
            Sessions { next_attach: routes.next_attach(), changes: routes.changes(), is_online: &is_online };
        let mut batch = self.executor.begin(&*view, now_ms, sessions);
        for job in jobs {
            if batch.is_full() {
                break;
            }
            let output = match admit(routes, &touched, &job.command) {
                Admission::Execute => batch.run(&job.command),
                Admission::Refuse(error) => Output::refused(error),
                Admission::Wait => break,
            };
            touched.add(&job.command, &output);
            // Its arrival may end others of its user.
            if let Some(user) = arriving(&job.command, &output).filter(|user| self.routes.is_online(*user)) {
                touched.users.insert(user);
            }
            outputs.push(output);
        }
        let opened = batch.take_opened();
        let records = batch.finish(is_forced);
        if is_forced || !records.is_empty() {
            self.routes.forget_changes();
            self.told = 0;
        }
        Executed { jobs: Vec::new(), outputs, records, opened, now_ms }
    }

    fn answer(&mut self, job: Job, output: Output, now_ms: i64) {
        if let Err(error) = output.result {
            self.counters.count_refusal(error);
        }
        self.apply(output.effect);
        let Job { command, reply_to } = job;
        let result = match command {
            Command::Attach { lane, session, peer, .. }
            | Command::AttachVouched { lane, session, peer, .. } => {
                self.attach(lane, session, &peer, output.result, now_ms);
                return;
            }
            Command::Announce { session, user, device, peer } => {
                self.announce(session, (user, device), &peer, output.result, now_ms);
                return;
            }
            Command::Sync { sender, read } => {
                read(output.result.and_then(|_| self.attach_of(sender).ok_or(RequestError::Stale)));
                return;
            }
            Command::Send { sender, .. } => {
                let duplicate = matches!(&output.result, Ok(Reply::Sent(sent)) if sent.duplicate);
                self.counters.duplicates.add(u64::from(duplicate));
                if let ReplyTo::Session { session, tag } = reply_to {
                    let to = self.way_back(session, sender);
                    self.routes.send(session.lane, Down::SendDone { to, tag, result: sent(output.result) });
                    return;
                }
                output.result
            }
            Command::Forget { .. } => {
                if let Ok(Reply::Forgot(count)) = output.result {
                    self.counters.forgotten.add(count as u64);
                }
                output.result
            }
            Command::Ack { sender, .. } => {
                self.note_ack(sender, &output.result);
                if let ReplyTo::Session { session, tag } = reply_to {
                    let to = self.way_back(session, sender);
                    self.routes.send(session.lane, Down::AckDone { to, tag, result: acked(output.result) });
                    return;
                }
                output.result
            }
            other => self.route(other).unwrap_or(output.result),
        };
        if let ReplyTo::Call(answer) = reply_to {
            // A caller that has gone needs no answer.
            let _ = answer.send(result);
        }
    }

    /// What a command about routes comes to; `None` leaves its answer as it is.
    fn route(&mut self, command: Command) -> Option<Result<Reply, RequestError>> {
        let reply = match command {
            Command::ListSessions { user, from, limit } => {
                Reply::Sessions(self.routes.page(user, from, limit.clamp(1, SESSIONS_PAGE_MAX)))
            }
            Command::Presence { users } => {
                Reply::Presence(users.into_iter().map(|user| self.routes.presence(user)).collect())
            }
            Command::Kick { user, device } => {
                Reply::Kicked(self.routes.kick(user, device, CloseReason::Kicked))
            }
            Command::Stats => Reply::Stats(self.stats()),
            Command::Detach { session, user, device } => {
                self.routes.detach(session, user, device);
                return None;
            }
            Command::GatewayUp { lane, hello, down } => {
                self.routes.gateway_up(lane, hello, down);
                return None;
            }
            Command::GatewayDown { lane } => {
                self.routes.gateway_down(lane);
                return None;
            }
            Command::PresumeOffline { devices } => {
                devices.into_iter().for_each(|(user, device)| self.routes.presume_offline(user, device));
                return None;
            }
            _ => return None,
        };
        Some(Ok(reply))
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Deliver { body, user, seq } => {
                self.counters.sends.add(1);
                self.deliver(&body, &[(user, seq)]);
            }
            Effect::DeliverMany { body, users } => {
                if !body.message_id.is_none() {
                    self.counters.sends.add(users.len() as u64);
                }
                self.deliver(&body, &users);
            }
            Effect::KickOlder { user, before_ms, reason } => {
                self.routes.kick_older(user, before_ms, reason);
            }
            Effect::Kick { user, device, reason } => {
                self.routes.kick(user, Some(device), reason);
            }
        }
    }

    fn deliver(&mut self, body: &Arc<Body>, users: &[(UserId, Seq)]) {
        let pen = self.trace.pen().filter(|_| !body.message_id.is_none());
        self.counters.deliveries.add(self.routes.deliver(body, users, pen, self.released_ms));
    }

    fn note_ack(&self, sender: Sender, result: &Result<Reply, RequestError>) {
        if let (Ok(Reply::Acked(seq)), Some(mut pen)) = (result, self.trace.pen()) {
            let Sender { user, device, .. } = sender;
            pen.write(Traced::Acked { user, device, seq: *seq, at_ms: self.released_ms });
        }
    }

    fn attach(
        &mut self,
        lane: Lane,
        session: SessionKey,
        peer: &str,
        result: Result<Reply, RequestError>,
        now_ms: i64,
    ) {
        let refuse = |error: RequestError| Down::SignInRefused { session, refusal: error.refusal() };
        let item = match result.map(|reply| self.arrive(reply, lane, session, peer, now_ms)) {
            Ok(None) => return,
            Ok(Some(Ok(signed_in))) => signed_in,
            Ok(Some(Err(error))) => {
                self.counters.count_refusal(error);
                refuse(error)
            }
            Err(error) => refuse(error),
        };
        self.routes.send(lane, item);
    }

    /// `None` when its connection is gone.
    fn arrive(
        &mut self,
        reply: Reply,
        lane: Lane,
        session: SessionKey,
        peer: &str,
        now_ms: i64,
    ) -> Option<Result<Down, RequestError>> {
        let Reply::Admitted(Admitted { user, device, latest, issued_at_ms, expires_at_ms }) = reply else {
            unreachable!("an attach is admitted or refused, not {reply:?}");
        };
        let kind = match self.kind(user, device) {
            Ok(kind) => kind,
            Err(error) => return Some(Err(error.into())),
        };
        let arrival = Arrival { lane, session, user, device, peer, issued_at_ms, kind };
        let attached = self.routes.attach(&arrival, now_ms)?;
        Some(attached.map(|Attached { attach, ended }| {
            self.counters.count_ended(&ended);
            let expires_at_ms = if expires_at_ms == i64::MAX { 0 } else { expires_at_ms };
            let grant = Grant { user, device, expires_at_ms };
            Down::SignedIn { session, attach, latest, grant }
        }))
    }

    /// Of a device, if the policy asks; 0: not known.
    fn kind(&self, user: UserId, device: DeviceId) -> Result<u8, StoreError> {
        if !self.routes.asks_kind() {
            return Ok(0);
        }
        let stored = self.store.get(Table::Device, &OfDevice::Record.key(user, device))?;
        let record = stored.map(|bytes| DeviceRecord::from_bytes(&bytes)).transpose()?;
        Ok(record.map_or(0, |record| u8::try_from(record.info.kind).unwrap_or(0)))
    }

    fn announce(
        &mut self,
        at: SessionRef,
        (user, device): (UserId, DeviceId),
        peer: &str,
        result: Result<Reply, RequestError>,
        now_ms: i64,
    ) {
        let SessionRef { lane, session, attach: was } = at;
        let kick = |reason| Down::Kick { session, attach: was, reason };
        let known = result.and_then(|reply| Ok((reply, self.kind(user, device)?)));
        let item = match known {
            Ok((Reply::Admitted(Admitted { latest, issued_at_ms, .. }), kind)) => {
                let arrival = Arrival { lane, session, user, device, peer, issued_at_ms, kind };
                match self.routes.announce(&arrival, was, now_ms) {
                    Some(Announced::Attached(Attached { attach, ended })) => {
                        self.counters.count_ended(&ended);
                        Down::Announced { session, attach, latest }
                    }
                    Some(Announced::Refused(reason)) => {
                        self.counters.count_ended(&[reason]);
                        kick(reason)
                    }
                    None => return,
                }
            }
            Ok((reply, _)) => unreachable!("an announcement is admitted or refused, not {reply:?}"),
            Err(RequestError::NotSignedIn) => {
                self.routes.detach(at, user, device);
                kick(CloseReason::TokenRevoked)
            }
            Err(_) => kick(CloseReason::Unavailable),
        };
        self.routes.send(lane, item);
    }

    /// How the gateway knows the session when its answer arrives: if it was announced anew since the call, by the later
    /// number.
    fn way_back(&self, session: SessionRef, sender: Sender) -> (SessionKey, Attach) {
        let attach = self.routes.current(session, sender.user, sender.device).unwrap_or(session.attach);
        (session.session, attach)
    }

    fn attach_of(&self, sender: Sender) -> Option<Attach> {
        self.routes.current(sender.session()?, sender.user, sender.device)
    }

    fn stats(&self) -> Stats {
        let (sessions, users_online, gateways) = self.routes.counts();
        Stats {
            sessions,
            users_online,
            gateways,
            commands: self.counters.commands.get(),
            commits: self.counters.commits.get(),
            wal_syncs: self.store.wal_syncs(),
            sends: self.counters.sends.get(),
            control_epoch: self.store.control_epoch(),
        }
    }
}

/// Whose session comes online.
fn arriving(command: &Command, output: &Output) -> Option<UserId> {
    let comes =
        matches!(command, Command::Attach { .. } | Command::AttachVouched { .. } | Command::Announce { .. });
    match output.result {
        Ok(Reply::Admitted(Admitted { user, .. })) if comes => Some(user),
        _ => None,
    }
}

/// A session's call is executed only when that session is its device's newest.
fn admit(routes: &Routes, touched: &Touched, command: &Command) -> Admission {
    let (Command::Send { sender, .. } | Command::Ack { sender, .. } | Command::Sync { sender, .. }) = command
    else {
        return Admission::Execute;
    };
    let Some(session) = sender.session() else { return Admission::Execute };
    if touched.holds(*sender) {
        Admission::Wait
    } else if routes.current(session, sender.user, sender.device).is_some() {
        Admission::Execute
    } else {
        Admission::Refuse(RequestError::Stale)
    }
}

fn refuse_all(jobs: &[Job]) -> Vec<Output> {
    jobs.iter()
        .map(|job| match job.command {
            Command::Detach { .. }
            | Command::GatewayUp { .. }
            | Command::GatewayDown { .. }
            | Command::ListSessions { .. }
            | Command::Presence { .. }
            | Command::PresumeOffline { .. }
            | Command::Kick { .. }
            | Command::Stats => Output { result: Ok(Reply::Done), effect: Effect::None },
            _ => Output::refused(RequestError::Unavailable),
        })
        .collect()
}

fn sent(result: Result<Reply, RequestError>) -> Result<SendResult, Refusal> {
    match result {
        Ok(Reply::Sent(sent)) => Ok(sent),
        Ok(reply) => unreachable!("a send is not answered by {reply:?}"),
        Err(error) => Err(error.refusal()),
    }
}

fn acked(result: Result<Reply, RequestError>) -> Result<Seq, Refusal> {
    match result {
        Ok(Reply::Acked(seq)) => Ok(seq),
        Ok(reply) => unreachable!("an ack is not answered by {reply:?}"),
        Err(error) => Err(error.refusal()),
    }
}
