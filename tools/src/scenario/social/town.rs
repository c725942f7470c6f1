//! The day itself: acts by an open schedule, devices that come and go, a server that is killed.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use gimbal_rpc::v1::SyncRequest;
use tokio::{
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use super::{
    Parameters,
    act::{Done, Hands, Task},
    choose::{Rng, Thing, choose, found_with},
    device::{Crowd, Device},
    model::{Act, Made, Model, Who},
};
use crate::{
    clock,
    grpc::{Credential, explain},
    load::{Place, nanos, progress, server::Server, stage::Stage, stop, watch::Live},
    report::{Counts, Latency, Report},
};

/// Acts under way at once; beyond it the schedule is late, and latencies say so.
const OPEN_MAX: usize = 512;
/// Longest sleep between two looks at the schedule.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last deliveries may take.
const SETTLE: Duration = Duration::from_secs(60);

/// A person with devices.
pub(super) struct Person {
    pub(super) first: Arc<Device>,
    pub(super) second: Option<Arc<Device>>,
}

impl Person {
    pub(super) fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        [&self.first].into_iter().chain(&self.second)
    }
}

/// Everybody, and the model of it all.
pub(super) struct Town<'a> {
    stage: &'a Stage<'a>,
    parameters: &'a Parameters,
    place: Place,
    pub(super) model: Model,
    pub(super) people: Vec<Person>,
    pub(super) hands: Arc<Hands>,
    pub(super) crowd: Arc<Crowd>,
    rng: Rng,
    busy: HashSet<Thing>,
    tasks: JoinSet<Done>,
    followers: Vec<JoinHandle<()>>,
    number: u32,
    pub(super) counts: Counts,
    pub(super) sends: Latency,
    pub(super) others: Latency,
    pub(super) refused_as_due: u64,
    pub(super) faults: Vec<String>,
    pub(super) restarts: u32,
}

impl<'a> Town<'a> {
    /// Everybody signs in.
    pub(super) fn new(stage: &'a Stage<'a>, parameters: &'a Parameters) -> Result<Self> {
        let run = nanos(clock::unix());
        let hands = Hands {
            api: stage.api.clone(),
            run,
            backend: Credential::bearer(&stage.target.key)?,
            repeats: AtomicU64::default(),
            shed: AtomicU64::default(),
        };
        let mut town = Self {
            stage,
            parameters,
            place: stage.target.place(),
            model: Model::default(),
            people: Vec::new(),
            hands: Arc::new(hands),
            crowd: Arc::new(Crowd { run, ..Crowd::default() }),
            rng: Rng::new(parameters.seed),
            busy: HashSet::new(),
            tasks: JoinSet::new(),
            followers: Vec::new(),
            number: 0,
            counts: Counts::default(),
            sends: Latency::default(),
            others: Latency::default(),
            refused_as_due: 0,
            faults: Vec::new(),
            restarts: 0,
        };
        for member in &stage.members {
            town.model.welcome(member.user.get());
            town.move_in((member.user.get(), member.device.get(), member.token.clone()));
        }
        Ok(town)
    }

    fn move_in(&mut self, registered: (u64, u64, String)) {
        let first = Arc::new(Device::new(registered, true, true));
        self.followers.push(first.follow(&self.place, &self.crowd));
        self.people.push(Person { first, second: None });
    }

    /// Something is wrong: the first ones are put in words.
    pub(super) fn fault(&mut self, words: String) {
        Report::fault(&mut self.faults, words);
    }

    /// Learns whether senders find what they say in their own mailboxes, and makes groups of several sizes.
    pub(super) async fn settle_in(&mut self) -> Result<()> {
        let act = Act::Say { from: 0, to: 1 };
        let task = self.task(act, clock::shared_ns());
        let done = self.hands.perform(task).await;
        ensure!(matches!(&done.word, Ok((Ok(_), _))), "the first message is refused");
        let first = &self.people[0].first;
        let credential = Credential::device(first.user, first.device, &first.token)?;
        let page = self.stage.api.messages(credential).sync(SyncRequest::default()).await;
        let page = page.map_err(|status| explain("sync", &status))?.into_inner();
        self.model.own_copies = page.latest > 0;
        self.done(done);
        let count = self.people.len();
        for size in [2, 5, 20, count / 4, count - 1] {
            let act = found_with(&self.model, &mut self.rng, size);
            let task = self.task(act, clock::shared_ns());
            let done = self.hands.perform(task).await;
            self.done(done);
        }
        Ok(())
    }

    fn task(&mut self, act: Act, intended_ns: u64) -> Task {
        self.number += 1;
        let people = &self.model.people;
        let (by, user, group) = match act {
            Act::Say { from, to } => (from, Some(to), None),
            Act::Ask { by, to }
            | Act::Agree { by, to }
            | Act::Decline { by, to }
            | Act::Unfriend { by, to }
            | Act::Block { by, to }
            | Act::Unblock { by, to } => (by, Some(to), None),
            Act::Enlist { by, group, user }
            | Act::Expel { by, group, user }
            | Act::SetRole { by, group, user, .. }
            | Act::Mute { by, group, user, .. }
            | Act::HandOn { by, group, user } => (by, Some(user), Some(group)),
            Act::SayAll { from: by, group } | Act::Leave { by, group } | Act::Dissolve { by, group } => {
                (by, None, Some(group))
            }
            Act::Found { by, .. } => (by, None, None),
            Act::SignUp => (0, None, None),
        };
        let users: &[Who] = if let Act::Found { users, .. } = &act { users } else { &[] };
        Task {
            number: self.number,
            by: Arc::clone(&self.people[by].first),
            user: user.map_or(0, |user| people[user]),
            group: group.map_or(0, |group| self.model.groups[group].id),
            users: users.iter().map(|&user| people[user]).collect(),
            intended_ns,
            bytes: self.parameters.bytes,
            act,
        }
    }

    /// An act was answered: the model does it too, and must say the same.
    fn done(&mut self, done: Done) {
        let Done { task, word, registered, took_ns } = done;
        self.busy.retain(|thing| !task.act.things().contains(thing));
        let is_said = matches!(task.act, Act::Say { .. } | Act::SayAll { .. });
        self.counts.sent += u64::from(is_said);
        let (word, made): (_, Made) = match word {
            Ok(answered) => answered,
            Err(error) => {
                self.counts.unanswered += 1;
                return self.fault(format!("{:?}: {error:#}", task.act));
            }
        };
        let expected = self.model.attempt(task.number, &task.act, made);
        if word != expected {
            self.counts.wrong += 1;
            self.fault(format!("{:?} is answered {word:?} in place of {expected:?}", task.act));
        }
        self.counts.acked += u64::from(is_said && word.is_ok());
        self.refused_as_due += u64::from(word.is_err());
        if let Some(device) = registered {
            self.move_in(device);
        }
        let latency = if is_said { &mut self.sends } else { &mut self.others };
        latency.record(took_ns);
    }

    /// Acts until the day is over; returns how long that was, seconds. `server` is killed so many times as is asked.
    pub(super) async fn live(&mut self, server: Option<Server>) -> Result<(f64, Option<Server>)> {
        let begin = clock::shared_ns();
        let length_ns = (self.parameters.duration_s * 1e9) as u64;
        let bar = progress(length_ns / 1_000_000, "social");
        let (mut acts, mut visits, mut kills) = (0_u64, 0_u64, 0_u32);
        let (mut server, mut killing) = (server, None);
        loop {
            let since = clock::shared_ns() - begin;
            // The day is as much longer as its last restart is late.
            if since >= length_ns && kills >= self.parameters.restart || stop::is_requested() {
                break;
            }
            let due = |done: u64, rate: f64| (done as f64 * 1e9 / rate) as u64;
            if self.parameters.churn > 0.0 && due(visits, self.parameters.churn) <= since {
                visits += 1;
                self.visit().await?;
            }
            let kill_at = length_ns / u64::from(self.parameters.restart + 1) * u64::from(kills + 1);
            if kills < self.parameters.restart && since >= kill_at && server.is_some() {
                kills += 1;
                killing = server.take().map(|server| self.kill(server));
            }
            if let Some(done) = killing.take_if(|killing| killing.is_finished()) {
                server = Some(self.revived(done).await?);
            }
            self.take_answers()?;
            let intended = due(acts, self.parameters.rate);
            let is_late = intended <= since && self.tasks.len() < OPEN_MAX;
            if is_late && self.begin(begin + intended) {
                acts += 1;
            } else {
                let wait = Duration::from_nanos(intended.saturating_sub(since))
                    .clamp(Duration::from_micros(100), LOOK);
                self.join_one(wait).await?;
            }
            self.show(&bar, since);
        }
        bar.finish_and_clear();
        if let Some(killing) = killing {
            server = Some(self.revived(killing).await?);
        }
        let seconds = (clock::shared_ns() - begin) as f64 / 1e9;
        Ok((seconds, server))
    }

    fn show(&self, bar: &indicatif::ProgressBar, since: u64) {
        bar.set_position(since / 1_000_000);
        let live = &self.stage.live;
        Live::set(&live.sent, self.counts.sent);
        Live::set(&live.acked, self.counts.acked);
        Live::set(&live.delivered, self.crowd.delivered.load(Ordering::Relaxed));
        Live::set(&live.online, self.crowd.online.load(Ordering::Relaxed));
    }

    /// False: nothing was found that may be done now.
    fn begin(&mut self, intended_ns: u64) -> bool {
        let Some(act) = choose(&self.model, &self.busy, &mut self.rng) else { return false };
        self.busy.extend(act.things());
        let (task, hands) = (self.task(act, intended_ns), Arc::clone(&self.hands));
        self.tasks.spawn(async move { hands.perform(task).await });
        true
    }

    /// Waits for one answer, `wait` at most, and takes it with all others that are there.
    async fn join_one(&mut self, wait: Duration) -> Result<()> {
        if self.tasks.is_empty() {
            sleep(wait).await;
        } else if let Ok(Some(done)) = timeout(wait, self.tasks.join_next()).await {
            self.done(done.context("an act ended badly")?);
        }
        self.take_answers()
    }

    fn take_answers(&mut self) -> Result<()> {
        while let Some(done) = self.tasks.try_join_next() {
            self.done(done.context("an act ended badly")?);
        }
        Ok(())
    }

    /// Somebody's second device comes or goes, or the first one comes anew.
    async fn visit(&mut self) -> Result<()> {
        let who = self.rng.index(self.people.len());
        if self.rng.below(3) == 0 {
            self.people[who].first.want(true);
            return Ok(());
        }
        if let Some(second) = &self.people[who].second {
            second.want(!second.is_online());
            return Ok(());
        }
        if self.crowd.is_restarting.load(Ordering::Relaxed) {
            return Ok(());
        }
        let registered = self.hands.second_device(self.people[who].first.user).await?;
        let second = Arc::new(Device::new(registered, false, true));
        self.followers.push(second.follow(&self.place, &self.crowd));
        self.people[who].second = Some(second);
        Ok(())
    }

    fn kill(&self, mut server: Server) -> JoinHandle<Result<Server>> {
        let crowd = Arc::clone(&self.crowd);
        crowd.is_restarting.store(true, Ordering::SeqCst);
        crowd.kills.fetch_add(1, Ordering::SeqCst);
        spawn_blocking(move || {
            server.kill_and_start()?;
            // Whoever came to the old one after the first count ends with it, too.
            crowd.kills.fetch_add(1, Ordering::SeqCst);
            server.wait_ready()?;
            Ok(server)
        })
    }

    async fn revived(&mut self, killing: JoinHandle<Result<Server>>) -> Result<Server> {
        let server = killing.await.context("the restart ended badly")??;
        self.restarts += 1;
        self.crowd.is_restarting.store(false, Ordering::SeqCst);
        Ok(server)
    }

    /// Waits for all answers, has all devices come, and waits until each has everything. Then each acknowledges it.
    pub(super) async fn settle(&mut self) -> Result<()> {
        while !self.tasks.is_empty() {
            self.join_one(LOOK).await?;
        }
        for person in &self.people {
            person.devices().filter(|device| !device.is_online()).for_each(|device| device.want(true));
        }
        let end = clock::now() + SETTLE;
        while !self.is_settled() && clock::now() < end && !stop::is_requested() {
            sleep(LOOK).await;
        }
        for (who, person) in self.people.iter().enumerate() {
            for device in person.devices() {
                let (count, wanted) = (device.count(), self.model.mailboxes[who].len() as u64);
                if count < wanted {
                    self.counts.lost += wanted - count;
                    Report::fault(
                        &mut self.faults,
                        format!(
                            "device {} of user {} was given {count} of {wanted}",
                            device.device, device.user
                        ),
                    );
                }
                if let Some(client) = device.client() {
                    let acked = client.ack(gimbal_codec::Seq::new(count)).await;
                    if acked.as_ref().map(|seq| seq.get()).ok() != Some(count) {
                        self.counts.wrong += 1;
                        Report::fault(&mut self.faults, format!("an ack of {count} is answered {acked:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let has_all = |(who, person): (usize, &Person)| {
            let wanted = self.model.mailboxes[who].len() as u64;
            person.devices().all(|device| device.count() >= wanted && device.client().is_some())
        };
        self.people.iter().enumerate().all(has_all)
    }

    /// The devices go.
    pub(super) fn leave(&mut self) {
        self.followers.drain(..).for_each(|follower| follower.abort());
    }
}
