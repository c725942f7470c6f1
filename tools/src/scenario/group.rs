//! Write fan-out: the backend pushes each message into the mailboxes of many users, durably, in one call.
//!
//! Users are in groups of up to 512, the most one call takes. A group has one call under way at a time, for calls have no
//! order among themselves; latency counts from when a message should have been sent. Every mailbox must end up
//! with all messages of its group, once and in order.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use anyhow::{Result, ensure};
use gimbal_rpc::v1::{PushToUsersReply, PushToUsersRequest, messages_client::MessagesClient};
use serde::Serialize;
use tonic::{Response, Status};

use crate::{
    clock,
    grpc::{Authorized, Credential, explain},
    ledger::{Mark, Outcome, Sent},
    load::{
        Target,
        inbox::{Inbox, Tally},
        mailboxes::read_mailboxes,
        nanos, progress,
        sockets::{Event, Sockets},
        stage::Stage,
        stop,
        watch::{Live, Watch},
    },
    report::{Figure, Latency, Report},
};

/// Users in one call, as the server bounds it.
pub const USERS_MAX: usize = 512;
/// Longest wait in one turn: answers of calls are looked at then.
const TURN_MAX: Duration = Duration::from_millis(1);
/// How long answers and deliveries may take after the last call.
const DRAIN_NS_MAX: u64 = 15_000_000_000;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Users, each with one connection.
    pub users: usize,
    /// Users of each group.
    pub group: usize,
    /// Calls per second over all groups.
    pub rate: f64,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Sent and verified, but not measured, seconds.
    pub warm_up_s: f64,
    /// Measured, seconds.
    pub duration_s: f64,
}

/// One group: the backend's page of the ledger, and its call under way.
struct Group {
    users: Vec<u64>,
    sent: Sent,
    intended_ns: Option<u64>,
}

type Answer = (usize, u32, Result<Response<PushToUsersReply>, Status>);

struct Load<'a> {
    parameters: &'a Parameters,
    groups: Vec<Group>,
    inboxes: Vec<Inbox>,
    sockets: Sockets,
    tally: Tally,
    calls: Latency,
    messages: MessagesClient<Authorized>,
    answered: Sender<Answer>,
    answers: Receiver<Answer>,
    stage: &'a Stage<'a>,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    let Parameters { users, group, rate, bytes, .. } = *parameters;
    ensure!((1..=USERS_MAX).contains(&group), "--group is 1 to {USERS_MAX}, the most one call takes");
    ensure!(users > 0 && rate > 0.0, "at least one user and a rate above 0");
    ensure!(bytes <= gimbal_codec::limits::CONTENT_BYTES_MAX, "a message is too long for one frame");
    let stage = Stage::open(target, users)?;
    let sockets = stage.sign_in()?;
    let watch = stage.watch(&[])?;
    let mut load = Load::new(&stage, sockets, parameters)?;
    let seconds = load.push_all(&watch)?;
    load.drain()?;
    let Load { groups, inboxes, mut tally, calls, .. } = load;
    let bar = progress(users as u64, "verify");
    let mailboxes = stage.runtime.block_on(read_mailboxes(&stage.api, &stage.members, &bar));
    bar.finish_and_clear();
    tally.counts.unanswered += groups.iter().map(|group| group.sent.open() as u64).sum::<u64>();
    match &mailboxes {
        Ok(mailboxes) => {
            for (index, (inbox, mailbox)) in inboxes.iter().zip(mailboxes).enumerate() {
                tally.judge(index, &groups[inbox.sender as usize].sent, inbox, mailbox);
            }
        }
        Err(error) => tally.fault(format!("the mailboxes cannot be read: {error:#}")),
    }
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("recipient", tally.delivered_measured);
    }
    let mut report = stage.report("group", parameters, tally.counts, watched);
    report.complete &= mailboxes.is_ok();
    report.ok &= mailboxes.is_ok() && report.counts.acked > 0 && report.counts.delivered == tally.stored;
    let per_second = tally.delivered_measured as f64 / seconds.max(1e-9);
    let cpu_us = report.server.as_ref().map(|server| server.per[0].cpu_us);
    report.headline = vec![Figure::new("delivered to recipients", per_second, "/s")];
    report.headline.extend(cpu_us.map(|us| Figure::new("server CPU per recipient", us, "us")));
    report.latency =
        [("call".to_owned(), calls.table()), ("delivery".to_owned(), tally.deliveries.table())].into();
    let p99 = report.latency["delivery"].p99_us;
    report.headline.push(Figure::new("p99 delivery", p99, "us"));
    report.detail("delivered_per_second", per_second);
    report.detail("server_cpu_us_per_recipient", cpu_us);
    report.detail("stored", tally.stored);
    report.faults = tally.faults;
    Ok(report)
}

impl<'a> Load<'a> {
    fn new(stage: &'a Stage<'a>, sockets: Sockets, parameters: &'a Parameters) -> Result<Self> {
        let groups = stage.members.chunks(parameters.group).map(|members| Group {
            users: members.iter().map(|member| member.user.get()).collect(),
            sent: Sent::default(),
            intended_ns: None,
        });
        let inbox = |index| Inbox { sender: (index / parameters.group) as u32, ..Inbox::default() };
        let (answered, answers) = channel();
        Ok(Self {
            parameters,
            groups: groups.collect(),
            inboxes: (0..stage.members.len()).map(inbox).collect(),
            sockets,
            tally: Tally { run: nanos(clock::unix()), ..Tally::default() },
            calls: Latency::default(),
            messages: stage.api.messages(Credential::bearer(&stage.target.key)?),
            answered,
            answers,
            stage,
        })
    }

    /// Pushes by the schedule; returns the length of the measured time, seconds.
    fn push_all(&mut self, watch: &Watch) -> Result<f64> {
        let begin = clock::shared_ns();
        let from = begin + (self.parameters.warm_up_s * 1e9) as u64;
        let to = from + (self.parameters.duration_s * 1e9) as u64;
        let bar = progress((to - begin) / 1_000_000, "group");
        let mut scheduled = 0u64;
        self.tally.now_ns = begin;
        while self.tally.now_ns < to && !stop::is_requested() && self.sockets.open() > 0 {
            if !self.tally.is_measuring && self.tally.now_ns >= from {
                self.tally.is_measuring = true;
                watch.begin();
            }
            let due = begin + (scheduled as f64 * 1e9 / self.parameters.rate) as u64;
            let at = (scheduled % self.groups.len() as u64) as usize;
            let mut wait = TURN_MAX;
            // A group that still waits for its answer makes the schedule late, and latencies say so.
            if due <= self.tally.now_ns && self.groups[at].intended_ns.is_none() {
                self.push(at, due);
                scheduled += 1;
                wait = Duration::ZERO;
            }
            self.turn(wait)?;
            bar.set_position((self.tally.now_ns - begin) / 1_000_000);
        }
        watch.end();
        self.tally.is_measuring = false;
        bar.finish_and_clear();
        Ok(self.tally.now_ns.saturating_sub(from) as f64 / 1e9)
    }

    fn push(&mut self, at: usize, intended_ns: u64) {
        let group = &mut self.groups[at];
        let number = group.sent.enter();
        group.intended_ns = Some(intended_ns);
        let mut content = Vec::with_capacity(self.parameters.bytes);
        Mark { run: self.tally.run, sender: at as u32, number, intended_ns }
            .write(self.parameters.bytes, &mut content);
        let request = PushToUsersRequest {
            user_ids: group.users.clone(),
            command: 1,
            content: content.into(),
            idempotency_key: format!("{}-{at}-{number}", self.tally.run),
            ..PushToUsersRequest::default()
        };
        let (mut messages, answered) = (self.messages.clone(), self.answered.clone());
        self.stage.runtime.spawn(async move {
            let _ = answered.send((at, number, messages.push_to_users(request).await));
        });
        self.tally.counts.sent += 1;
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        let (inboxes, tally) = (&mut self.inboxes, &mut self.tally);
        let mut is_new = true;
        self.sockets.poll(wait, &mut |index, event, out| {
            if std::mem::take(&mut is_new) {
                tally.now_ns = clock::shared_ns();
            }
            take(index, event, &mut inboxes[index], out, tally);
        })?;
        self.tally.now_ns = clock::shared_ns();
        while let Ok((at, number, answer)) = self.answers.try_recv() {
            self.answered(at, number, answer);
        }
        let (live, counts) = (&self.stage.live, &self.tally.counts);
        Live::set(&live.sent, counts.sent);
        Live::set(&live.acked, counts.acked);
        Live::set(&live.delivered, counts.delivered);
        Live::set(&live.online, self.sockets.open() as u64);
        Ok(())
    }

    fn answered(&mut self, at: usize, number: u32, answer: Result<Response<PushToUsersReply>, Status>) {
        let group = &mut self.groups[at];
        let intended_ns = group.intended_ns.take().unwrap_or(self.tally.now_ns);
        let users = match answer {
            Ok(reply) => reply.into_inner().users,
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                group.sent.answer(number, Outcome::Refused);
                self.tally.counts.shed += 1;
                return;
            }
            Err(status) => {
                self.tally.counts.refused += 1;
                return self.tally.fault(format!("{:#}", explain("push", &status)));
            }
        };
        let seq = users.first().map_or(0, |user| user.seq);
        if users.len() != group.users.len()
            || users.iter().any(|user| user.seq != seq || !user.reason.is_empty())
        {
            self.tally.counts.wrong += 1;
            self.tally.fault(format!("push {number} of group {at} did not reach all users at the same seq"));
        }
        group.sent.answer(number, Outcome::Acked(seq));
        self.tally.counts.acked += 1;
        if self.tally.is_measuring {
            self.calls.record(self.tally.now_ns.saturating_sub(intended_ns));
        }
    }

    /// Waits for open answers and deliveries.
    fn drain(&mut self) -> Result<()> {
        let end = clock::shared_ns() + DRAIN_NS_MAX;
        while !self.is_complete() && self.tally.now_ns < end && self.sockets.open() > 0 {
            self.turn(TURN_MAX)?;
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.groups.iter().all(|group| group.intended_ns.is_none())
            && self.inboxes.iter().all(|inbox| {
                inbox.received.cursor() >= self.groups[inbox.sender as usize].sent.acked() as u64
            })
    }
}

/// Enters an event of a client that only takes its mailbox.
fn take(index: usize, event: Event<'_>, inbox: &mut Inbox, out: &mut Vec<u8>, tally: &mut Tally) {
    match event {
        Event::Closed(why) => {
            tally.counts.closed += 1;
            tally.fault(format!("connection {index} ended: {why}"));
        }
        Event::Frame(packet) => match inbox.handle(&packet, out, tally) {
            Ok(true) => {}
            Ok(false) => {
                tally.counts.unexpected += 1;
                tally.fault(format!("connection {index}: unexpected command {}", packet.command));
            }
            Err(why) => {
                tally.counts.unexpected += 1;
                tally.fault(format!("connection {index}: {why}"));
            }
        },
    }
}
