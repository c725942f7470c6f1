//! A day in miniature, all at once: durable sends, rooms, heartbeats, people who wander between rooms, people who come and
//! go and sync what they missed. The ledger covers every durable message and every member that stays in its room.

mod crew;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    clock,
    ledger::Sent,
    load::{
        Target,
        mailboxes::{Mailbox, read_mailboxes},
        progress,
        publisher::Publisher,
        stage::Stage,
        stop,
        watch::{Live, Watch, Watched},
    },
    report::{Figure, Report},
};
use crew::{Crew, Role, State};

/// Longest wait in one turn.
const TURN_MAX: Duration = Duration::from_millis(20);
/// Things of one kind done in one turn before arrivals are looked at again.
const STEPS_PER_TURN_MAX: usize = 64;
/// How long joins, and answers and deliveries after the last send, may take.
const PATIENCE_NS: u64 = 20_000_000_000;
/// The first room.
const ROOM: u64 = 0x6d69_7800;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Users, each with one connection: a quarter wanders between rooms, a quarter comes and goes.
    pub users: usize,
    /// Durable messages per second over all.
    pub rate: f64,
    /// Rooms.
    pub rooms: usize,
    /// Publishes per second over all rooms.
    pub publishes: f64,
    /// From one heartbeat of a client to its next, seconds.
    pub heartbeat_s: f64,
    /// People per second who leave or enter a room, and as many who go or come back.
    pub churn: f64,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Measured, seconds.
    pub duration_s: f64,
}

/// When the next thing of one kind is due: an open loop.
struct Schedule {
    begin_ns: u64,
    step_ns: f64,
    done: u64,
}

impl Schedule {
    fn new(begin_ns: u64, per_second: f64) -> Self {
        Self { begin_ns, step_ns: 1e9 / per_second.max(1e-9), done: 0 }
    }

    fn due(&self) -> u64 {
        self.begin_ns.saturating_add((self.done as f64 * self.step_ns) as u64)
    }

    /// The number and intended time of the next thing, if it is due.
    fn take(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        let due = self.due();
        (due <= now_ns).then(|| {
            self.done += 1;
            (self.done - 1, due)
        })
    }
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    let Parameters { users, rate, rooms, publishes, heartbeat_s, churn, .. } = *parameters;
    ensure!(users >= 4 && users.is_multiple_of(4), "--users is a multiple of 4");
    ensure!(rooms > 0 && rooms <= users, "as many rooms as users at most, and at least one");
    let rates = [rate, publishes, heartbeat_s, churn];
    ensure!(rates.iter().all(|&rate| rate > 0.0), "every rate, and the heartbeat, is above 0");
    let stage = Stage::open(target, users)?;
    let sockets = stage.sign_in()?;
    let watch = stage.watch(&[])?;
    let mut crew = Crew::new(sockets, &stage, parameters.bytes, rooms);
    crew.enter_rooms();
    await_or(&mut crew, "joining", |crew| crew.state.entering == 0)?;
    let mut publishers = (0..rooms)
        .map(|room| Publisher::new(&stage, ROOM + room as u64, parameters.bytes))
        .collect::<Result<Vec<_>>>()?;
    publishers.iter_mut().try_for_each(Publisher::await_interest)?;
    let seconds = live_a_day(&mut crew, &mut publishers, parameters, &watch, &stage.live)?;
    crew.all_come_back()?;
    let is_quiet = await_or(&mut crew, "the last deliveries", |crew| crew.is_complete());
    if let Err(error) = is_quiet {
        crew.state.tally.fault(format!("{error:#}"));
    }
    let bar = progress(users as u64, "verify");
    let mailboxes = stage.runtime.block_on(read_mailboxes(&stage.api, &stage.members, &bar));
    bar.finish_and_clear();
    match &mailboxes {
        Ok(mailboxes) => judge(&mut crew, mailboxes),
        Err(error) => crew.state.tally.fault(format!("the mailboxes cannot be read: {error:#}")),
    }
    if let Some(failure) = publishers.iter().find_map(Publisher::failure) {
        crew.state.tally.counts.refused += 1;
        crew.state.tally.fault(format!("{failure:#}"));
    }
    let Crew { state, .. } = crew;
    Ok(report(stage, parameters, state, watch.finish(), seconds, mailboxes.is_ok()))
}

/// Turns until `done`, or fails after a while.
fn await_or(crew: &mut Crew<'_>, what: &str, done: impl Fn(&Crew<'_>) -> bool) -> Result<()> {
    let end = clock::shared_ns() + PATIENCE_NS;
    while !done(crew) && !stop::is_requested() && crew.sockets.open() > 0 {
        crew.turn(TURN_MAX)?;
        ensure!(
            crew.state.tally.now_ns < end,
            "{what} took too long: {}",
            crew.state.tally.faults.join("; ")
        );
    }
    Ok(())
}

/// Returns how long it took, seconds.
fn live_a_day(
    crew: &mut Crew<'_>,
    publishers: &mut [Publisher],
    parameters: &Parameters,
    watch: &Watch,
    live: &Live,
) -> Result<f64> {
    watch.begin_at_rest();
    let begin = clock::shared_ns();
    let end = begin + (parameters.duration_s * 1e9) as u64;
    let mut sends = Schedule::new(begin, parameters.rate);
    let mut publishes = Schedule::new(begin, parameters.publishes);
    let mut beats = Schedule::new(begin, parameters.users as f64 / parameters.heartbeat_s);
    let mut churn = Schedule::new(begin, parameters.churn);
    let bar = progress((end - begin) / 1_000_000, "mixed");
    (crew.state.is_measuring, crew.state.measure_from_ns) = (true, begin);
    crew.state.tally.now_ns = begin;
    while crew.state.tally.now_ns < end && !stop::is_requested() && crew.sockets.open() > 0 {
        let now = crew.state.tally.now_ns;
        for _ in 0..STEPS_PER_TURN_MAX {
            let Some((number, due)) = sends.take(now) else { break };
            crew.send(number, due);
        }
        if let Some((number, due)) = publishes.take(now) {
            let room = (number % publishers.len() as u64) as usize;
            publishers[room].publish(due);
            crew.state.published += 1;
        }
        for _ in 0..STEPS_PER_TURN_MAX {
            let Some((number, due)) = beats.take(now) else { break };
            crew.beat(number, due);
        }
        if let Some((number, _)) = churn.take(now) {
            crew.wander(number);
            crew.visit(number).context("cannot connect")?;
        }
        let next = [sends.due(), publishes.due(), beats.due(), churn.due()].into_iter().min().unwrap_or(now);
        crew.turn(Duration::from_nanos(next.saturating_sub(now)).min(TURN_MAX))?;
        Live::set(&live.sent, crew.state.tally.counts.sent);
        Live::set(&live.acked, crew.state.tally.counts.acked);
        Live::set(&live.delivered, crew.state.tally.counts.delivered + crew.state.room_deliveries);
        Live::set(&live.online, crew.sockets.open() as u64);
        bar.set_position((crew.state.tally.now_ns - begin) / 1_000_000);
    }
    watch.end();
    crew.state.is_measuring = false;
    bar.finish_and_clear();
    Ok((crew.state.tally.now_ns - begin) as f64 / 1e9)
}

/// Enters the ledger's judgement of every mailbox; those who only send must have got nothing.
fn judge(crew: &mut Crew<'_>, mailboxes: &[Mailbox]) {
    let nothing = Sent::default();
    let State { people, tally, .. } = &mut crew.state;
    for (index, mailbox) in mailboxes.iter().enumerate() {
        let sent = if people[index].role == Role::Sender { &nothing } else { &people[index - 1].sent };
        tally.counts.unanswered += sent.open() as u64;
        tally.judge(index, sent, &people[index].inbox, mailbox);
    }
}

fn report(
    stage: Stage<'_>,
    parameters: &Parameters,
    state: State,
    mut watched: Watched,
    seconds: f64,
    is_verified: bool,
) -> Report {
    let State { tally, acks, rooms, heartbeats, sign_ins, room_deliveries, published, .. } = state;
    let deliveries = tally.counts.delivered + room_deliveries;
    if let Some(server) = &mut watched.server {
        server.divide("delivery", deliveries);
        server.divide("connection", parameters.users as u64);
    }
    let mut report = stage.report("mixed", parameters, tally.counts, watched);
    report.complete &= is_verified;
    report.ok &= is_verified && report.counts.acked > 0 && report.counts.delivered == tally.stored;
    report.latency = [
        ("ack", acks.table()),
        ("delivery", tally.deliveries.table()),
        ("room", rooms.table()),
        ("heartbeat", heartbeats.table()),
        ("sign-in", sign_ins.table()),
    ]
    .map(|(name, table)| (name.to_owned(), table))
    .into();
    report.headline = vec![
        Figure::new("deliveries", deliveries as f64 / seconds.max(1e-9), "/s"),
        Figure::new("p99 ack", report.latency["ack"].p99_us, "us"),
        Figure::new("p99 room delivery", report.latency["room"].p99_us, "us"),
    ];
    let cores = report.server.as_ref().map(|server| server.cpu_s / server.seconds);
    report.headline.extend(cores.map(|cores| Figure::new("server CPU", cores, "cores")));
    report.detail("room_publishes", published);
    report.detail("room_deliveries", room_deliveries);
    report.detail("stored", tally.stored);
    report.faults = tally.faults;
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_gives_each_thing_once_and_at_its_time() {
        let mut schedule = Schedule::new(1_000, 1e6);
        assert_eq!(schedule.take(999), None);
        assert_eq!(schedule.take(2_500), Some((0, 1_000)));
        assert_eq!(schedule.take(2_500), Some((1, 2_000)));
        assert_eq!(schedule.take(2_500), None);
    }
}
