//! The whole crowd comes back at once after the server was restarted: how long until all are online and have synced?
//!
//! Every user has messages from before, taken live, and more that were stored while it was away. Time counts from
//! the moment the new server is ready. At the end each mailbox must hold all of it, once and in order.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gimbal_codec::{Command, Packet, Seq, body::Reply};
use gimbal_rpc::v1::PushToUsersRequest;
use serde::Serialize;

use super::group::USERS_MAX;
use crate::{
    clock,
    grpc::{Api, Credential, explain},
    ledger::{Mark, Outcome, Sent},
    load::{
        Target,
        fleet::sign_in_frame,
        inbox::{Inbox, Tally},
        mailboxes::read_mailboxes,
        nanos, progress,
        server::Server,
        sockets::{Event, Sockets},
        stage::{Stage, unless_stopped},
        stop,
        watch::{Live, Watch},
    },
    report::{Figure, Latency, Report},
};

/// Longest wait in one turn.
const TURN_MAX: Duration = Duration::from_millis(20);
/// How long deliveries, closes, and the way back of all may take.
const PATIENCE_NS: u64 = 60_000_000_000;
/// Connections begun in one turn before answers are looked at.
const CONNECTS_PER_TURN: usize = 256;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections.
    pub connections: usize,
    /// Messages of each user that wait for it when it comes back.
    pub missed: usize,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
}

struct Load<'a> {
    stage: &'a Stage<'a>,
    parameters: &'a Parameters,
    sockets: Sockets,
    /// Which user a socket is of: each one's second socket follows its first.
    users: usize,
    inboxes: Vec<Inbox>,
    sent: Sent,
    tally: Tally,
    back: Back,
}

/// The way back.
#[derive(Default)]
struct Back {
    begin_ns: u64,
    online: usize,
    synced: usize,
    sign_ins: Latency,
    syncs: Latency,
    online_s: f64,
    synced_s: f64,
}

/// Runs the scenario. The server must be our own.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(mut target: Target, parameters: &Parameters) -> Result<Report> {
    let mut server = target.server.take().context("reconnect restarts the server: use --start")?;
    ensure!(parameters.connections > 0, "at least one connection");
    let stage = Stage::open(&target, parameters.connections)?;
    let sockets = stage.sign_in()?;
    let mut load = Load::new(&stage, parameters, sockets);
    load.push(&stage.api, 1)?;
    load.run_until("the first messages", |load| load.are_all_given())?;
    let away_s = load.restart(&mut server)?;
    let api = stage.runtime.block_on(Api::connect(&target.grpc))?;
    load.push(&api, parameters.missed)?;
    let watch = Watch::start(&[server.pid()], target.http, &[], stage.live.clone())?;
    watch.begin_at_rest();
    load.come_back()?;
    watch.end();
    let bar = progress(parameters.connections as u64, "verify");
    let mailboxes = stage.runtime.block_on(read_mailboxes(&api, &stage.members, &bar));
    bar.finish_and_clear();
    let Load { inboxes, sent, mut tally, back, .. } = load;
    match &mailboxes {
        Ok(mailboxes) => {
            inboxes.iter().zip(mailboxes).enumerate().for_each(|(index, (inbox, mailbox))| {
                tally.judge(index, &sent, inbox, mailbox);
            });
        }
        Err(error) => tally.fault(format!("the mailboxes cannot be read: {error:#}")),
    }
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("connection", back.online as u64);
    }
    let mut report = stage.report("reconnect", parameters, tally.counts, watched);
    report.complete &= mailboxes.is_ok();
    report.ok &= report.complete && back.synced == parameters.connections;
    describe(&mut report, &back, away_s);
    report.faults = tally.faults;
    Ok(report)
}

fn describe(report: &mut Report, back: &Back, away_s: f64) {
    let cpu_us = report.server.as_ref().map(|server| server.per[0].cpu_us);
    report.headline = vec![
        Figure::new("until all are online", back.online_s, "s"),
        Figure::new("until all have synced", back.synced_s, "s"),
        Figure::new("came back", back.online as f64 / back.online_s.max(1e-9), "/s"),
    ];
    report
        .headline
        .extend(cpu_us.map(|us| Figure::new("server CPU per connection, sync included", us, "us")));
    report.latency =
        [("sign-in".to_owned(), back.sign_ins.table()), ("synced".to_owned(), back.syncs.table())].into();
    report.detail("online_s", back.online_s);
    report.detail("synced_s", back.synced_s);
    report.detail("restart_s", away_s);
    report.detail("server_cpu_us_per_connection", cpu_us);
}

impl<'a> Load<'a> {
    fn new(stage: &'a Stage<'a>, parameters: &'a Parameters, sockets: Sockets) -> Self {
        let users = stage.members.len();
        let tally = Tally { run: nanos(clock::unix()), now_ns: clock::shared_ns(), ..Tally::default() };
        let inboxes = (0..users).map(|_| Inbox::default()).collect();
        Self {
            stage,
            parameters,
            sockets,
            users,
            inboxes,
            sent: Sent::default(),
            tally,
            back: Back::default(),
        }
    }

    /// Stores `count` messages for every user.
    fn push(&mut self, api: &Api, count: usize) -> Result<()> {
        let bar = progress((count * self.users.div_ceil(USERS_MAX)) as u64, "push");
        let mut messages = api.messages(Credential::bearer(&self.stage.target.key)?);
        for _ in 0..count {
            let number = self.sent.enter();
            let mut content = Vec::new();
            Mark { run: self.tally.run, sender: 0, number, intended_ns: clock::shared_ns() }
                .write(self.parameters.bytes, &mut content);
            for members in self.stage.members.chunks(USERS_MAX) {
                unless_stopped("the pushes")?;
                let request = PushToUsersRequest {
                    user_ids: members.iter().map(|member| member.user.get()).collect(),
                    command: 1,
                    content: content.clone().into(),
                    ..PushToUsersRequest::default()
                };
                let reply = self.stage.runtime.block_on(messages.push_to_users(request));
                let reply = reply.map_err(|status| explain("push", &status))?.into_inner();
                let seq = u64::from(number) + 1;
                let wrong = reply.users.iter().find(|user| user.seq != seq || !user.reason.is_empty());
                ensure!(wrong.is_none(), "a push was not stored as seq {seq}: {wrong:?}");
                bar.inc(1);
            }
            self.sent.answer(number, Outcome::Acked(u64::from(number) + 1));
            self.tally.counts.sent += self.users as u64;
            self.tally.counts.acked += self.users as u64;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn are_all_given(&self) -> bool {
        let wanted = self.sent.acked() as u64;
        self.inboxes.iter().all(|inbox| inbox.received.cursor() >= wanted)
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = clock::shared_ns() + PATIENCE_NS;
        while !done(self) {
            unless_stopped(what)?;
            self.turn(TURN_MAX)?;
            ensure!(self.tally.now_ns < end, "{what} did not come: {}", self.tally.faults.join("; "));
        }
        Ok(())
    }

    /// Restarts the server and returns how long it was away, from the signal until it was ready, seconds.
    fn restart(&mut self, server: &mut Server) -> Result<f64> {
        let begin = clock::now();
        server.restart()?;
        server.wait_ready()?;
        let away_s = (clock::now() - begin).as_secs_f64();
        self.run_until("the end of all connections", |load| load.sockets.open() == 0)?;
        // Asked for, all of them.
        self.tally.counts.closed = 0;
        self.tally.faults.clear();
        Ok(away_s)
    }

    fn come_back(&mut self) -> Result<()> {
        self.back.begin_ns = clock::shared_ns();
        self.tally.now_ns = self.back.begin_ns;
        let end = self.back.begin_ns + PATIENCE_NS;
        let bar = progress(self.users as u64, "come back");
        let mut started = 0;
        while self.back.synced < self.users && self.tally.now_ns < end && !stop::is_requested() {
            for index in started..(started + CONNECTS_PER_TURN).min(self.users) {
                let socket =
                    self.sockets.begin_connect(self.stage.target.address).context("cannot connect")?;
                ensure!(socket == self.users + index, "sockets are numbered in order");
                let cursor = Seq::new(self.inboxes[index].received.cursor());
                let frame = sign_in_frame(&self.stage.members[index], Some(cursor));
                self.sockets.write(socket, |out| out.extend_from_slice(&frame));
            }
            started = (started + CONNECTS_PER_TURN).min(self.users);
            self.turn(if started < self.users { Duration::ZERO } else { TURN_MAX })?;
            bar.set_position(self.back.synced as u64);
        }
        bar.finish_and_clear();
        self.tally.counts.unanswered += (self.users - self.back.online) as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        let (inboxes, tally, back, users) = (&mut self.inboxes, &mut self.tally, &mut self.back, self.users);
        let wanted = self.sent.acked() as u64;
        self.sockets.poll(wait, &mut |socket, event, out| {
            tally.now_ns = clock::shared_ns();
            let (index, is_second) = (socket % users, socket >= users);
            match event {
                Event::Closed(why) => {
                    tally.counts.closed += 1;
                    tally.fault(format!("connection {index} ended: {why}"));
                }
                Event::Frame(packet) => {
                    let before = inboxes[index].received.cursor();
                    if let Err(why) = take(&packet, &mut inboxes[index], out, tally, back) {
                        tally.counts.unexpected += 1;
                        tally.fault(format!("connection {index}: {why}"));
                    }
                    if is_second && before < wanted && inboxes[index].received.cursor() >= wanted {
                        back.synced += 1;
                        back.syncs.record(tally.now_ns.saturating_sub(back.begin_ns));
                        back.synced_s = tally.now_ns.saturating_sub(back.begin_ns) as f64 / 1e9;
                    }
                }
            }
        })?;
        self.tally.now_ns = clock::shared_ns();
        let live = &self.stage.live;
        Live::set(&live.online, self.back.online as u64);
        Live::set(&live.delivered, self.tally.counts.delivered);
        Ok(())
    }
}

fn take(
    packet: &Packet<'_>,
    inbox: &mut Inbox,
    out: &mut Vec<u8>,
    tally: &mut Tally,
    back: &mut Back,
) -> Result<(), String> {
    if inbox.handle(packet, out, tally)? {
        return Ok(());
    }
    match Command::try_from(packet.command) {
        Ok(Command::SignIn) => {
            let reply = Reply::decode(packet.content).map_err(|error| error.to_string())?;
            if reply.code != 0 {
                tally.counts.refused += 1;
                return Err(format!("sign-in refused: {} ({})", reply.message, reply.code));
            }
            let ns = tally.now_ns.saturating_sub(back.begin_ns);
            tally.counts.signed_in += 1;
            back.online += 1;
            back.online_s = ns as f64 / 1e9;
            back.sign_ins.record(ns);
            Ok(())
        }
        Ok(Command::Close) => Ok(()),
        other => Err(format!("unexpected {other:?}")),
    }
}
