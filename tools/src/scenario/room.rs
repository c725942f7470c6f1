//! One room, many members, one publisher: server CPU per delivery, beside a bare `send()` loop over as many sockets.
//!
//! A round publishes a window of messages, waits until every member has all of them, and goes on. Rounds of both
//! servers alternate, so that both see the same machine; the medians are compared.

pub mod bare;

use anyhow::{Context as _, Result, ensure};
use gimbal_codec::{Command, RoomId, body, frame};
use serde::Serialize;

use crate::{
    clock,
    ledger::MARK_BYTES,
    load::{
        Target,
        crowd::{Done, Order},
        nanos, progress,
        publisher::Publisher,
        rounds::{RoundTable, Rounds},
        stage::{Stage, unless_stopped},
        stop,
        watch::{Live, Watch, read_server},
        worker::Crowds,
    },
    report::{Counts, Figure, Latency, Report},
};

/// How long one window may take.
const WINDOW_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
/// Windows before the first round.
const WARM_UP_WINDOWS: u64 = 20;
/// Sign-ins under way at once: below any backlog.
const ARRIVING_MAX: usize = 128;
/// The room; a run has a server of its own, or is alone in this room.
const ROOM: u64 = 0x6c6f_6164;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Members.
    pub members: usize,
    /// Publishes under way at once.
    pub window: usize,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Length of one round, seconds.
    pub round_s: f64,
    /// Rounds of each server.
    pub rounds: usize,
    /// Measure a bare loop as well.
    pub bare: bool,
}

/// Runs the scenario; a bare sender runs on `bare_cores`.
///
/// # Errors
/// When the run cannot be made or a window is never complete.
pub fn run(target: &Target, parameters: Parameters, bare_cores: Option<&str>) -> Result<Report> {
    ensure!(parameters.members > 0 && parameters.window > 0, "at least one member and one message");
    read_server(&target.pids)?;
    let stage = Stage::open(target, parameters.members)?;
    let mut crowds = Crowds::start(&stage)?;
    let watch = stage.watch(&crowds.pids())?;
    let mut room = Room::join(&stage, &mut crowds, &parameters)?;
    let mut bare = match parameters.bare {
        true => Some(bare::Bare::start(&parameters, frame_bytes(&parameters), bare_cores)?),
        false => None,
    };
    (0..WARM_UP_WINDOWS).try_for_each(|_| room.window())?;
    room.crowds.execute(&Order::Tell, || Ok(()))?;
    room.windows = Latency::default();
    watch.begin_at_rest();
    let mut rounds = Rounds::new(&target.pids);
    let mut bare_rounds = bare.as_ref().map(|bare| Rounds::new(&[bare.pid()]));
    let bar = progress(parameters.rounds as u64, "rounds");
    while rounds.count() < parameters.rounds && room.is_sound() {
        if let Err(error) = rounds.measure(|| windows(&parameters, &mut || room.timed_window())) {
            room.fail(&error);
            break;
        }
        if let Some((bare, rounds)) =
            bare.as_mut().zip(bare_rounds.as_mut()).filter(|_| !stop::is_requested())
        {
            rounds.measure(|| windows(&parameters, &mut || bare.window()))?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    watch.end();
    let told = room.crowds.execute(&Order::Tell, || Ok(()))?;
    let Room { counts, faults, windows, is_broken, .. } = room;
    let (rounds, bare_rounds) = (rounds.table(), bare_rounds.map(Rounds::table));
    let outcome =
        Outcome { is_broken, counts, faults, windows, deliveries: told.latency, rounds, bare_rounds };
    Ok(report(stage, watch, &parameters, outcome))
}

/// All that was measured.
struct Outcome {
    is_broken: bool,
    counts: Counts,
    faults: Vec<String>,
    windows: Latency,
    deliveries: Latency,
    rounds: RoundTable,
    bare_rounds: Option<RoundTable>,
}

fn report(stage: Stage<'_>, watch: Watch, parameters: &Parameters, outcome: Outcome) -> Report {
    let mut watched = watch.finish();
    let Outcome { is_broken, counts, faults, windows, deliveries, rounds, bare_rounds } = outcome;
    if let Some(server) = &mut watched.server {
        server.divide("delivery", rounds.count);
        server.divide("connection", parameters.members as u64);
        if bare_rounds.is_some() {
            // The time of the bare rounds is in the whole; what the server spent in it is not.
            watched
                .notes
                .push("the server's share of the time includes the bare rounds, in which it rests".into());
        }
    }
    let (cpu_us, rate) = (rounds.cpu_us, rounds.per_second);
    let bare_us = bare_rounds.as_ref().map(|bare| bare.cpu_us);
    let mut report = stage.report("room", parameters, counts, watched);
    report.complete &= !is_broken;
    report.ok &= report.complete && rounds.count > 0;
    report.headline =
        vec![Figure::new("server CPU per delivery", cpu_us, "us"), Figure::new("deliveries", rate, "/s")];
    if let Some(bare_us) = bare_us {
        report.headline.push(Figure::new("bare send loop per delivery", bare_us, "us"));
        report.headline.push(Figure::new("ratio to the bare loop", cpu_us / bare_us, "x"));
    }
    report.latency =
        [("window".to_owned(), windows.table()), ("delivery".to_owned(), deliveries.table())].into();
    report.detail("cpu_us_per_delivery", cpu_us);
    report.detail("deliveries_per_second", rate);
    report.detail("bare_cpu_us_per_delivery", bare_us);
    report.detail("ratio", bare_us.map(|bare_us| cpu_us / bare_us));
    report.detail("rounds", &rounds.rounds);
    report.detail("bare_rounds", bare_rounds.map(|bare| bare.rounds));
    report.faults = faults;
    report
}

/// Windows for the length of a round; how many deliveries they were.
fn windows(parameters: &Parameters, window: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
    let (begin, mut windows) = (clock::now(), 0u64);
    while clock::now().duration_since(begin).as_secs_f64() < parameters.round_s && !stop::is_requested() {
        window()?;
        windows += 1;
    }
    Ok(windows * parameters.window as u64 * parameters.members as u64)
}

/// The members, joined, and the publisher.
struct Room<'a> {
    crowds: &'a mut Crowds,
    publisher: Publisher,
    window: usize,
    counts: Counts,
    faults: Vec<String>,
    windows: Latency,
    /// It could not go on.
    is_broken: bool,
    live: &'a Live,
}

impl<'a> Room<'a> {
    fn join(stage: &'a Stage<'_>, crowds: &'a mut Crowds, parameters: &Parameters) -> Result<Self> {
        let total = parameters.members;
        let mut counts = Counts::default();
        for order in [Order::Arrive { total, rate: 0.0, open: ARRIVING_MAX }, Order::Join { room: ROOM }] {
            let done = crowds.execute(&order, || Ok(()))?;
            unless_stopped("sign-in")?;
            let why = done.faults.first().map_or("", String::as_str);
            ensure!(done.online == total, "only {} of {total} members are online: {why}", done.online);
            ensure!(done.counts.is_clean(), "not every member could join: {why}");
            counts.add(&done.counts);
        }
        let mut publisher = Publisher::new(stage, ROOM, parameters.bytes)?;
        let window = parameters.window;
        crowds
            .execute(&Order::Take { messages: 1 }, || publisher.await_interest())
            .context("the first message of the room")?;
        let (faults, windows) = (Vec::new(), Latency::default());
        let live = &stage.live;
        Ok(Self { crowds, publisher, window, counts, faults, windows, is_broken: false, live })
    }

    /// One window: published at once, complete when every member has all of it.
    fn window(&mut self) -> Result<()> {
        let Self { crowds, publisher, window, .. } = self;
        let publish = || {
            let now = clock::shared_ns();
            (0..*window).for_each(|_| publisher.publish(now));
            Ok(())
        };
        let done: Done = crowds.execute(&Order::Take { messages: *window }, publish)?;
        self.counts.sent += self.window as u64;
        Live::set(&self.live.sent, self.counts.sent);
        if let Some(failure) = self.publisher.failure() {
            return Err(failure);
        }
        self.counts.add(&done.counts);
        done.faults.into_iter().for_each(|words| Report::fault(&mut self.faults, words));
        ensure!(self.counts.is_clean(), "not every member got every message");
        Ok(())
    }

    fn timed_window(&mut self) -> Result<()> {
        let begin = clock::now();
        self.window()?;
        self.windows.record(nanos(clock::now() - begin));
        Ok(())
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.is_broken = true;
        Report::fault(&mut self.faults, format!("{error:#}"));
    }

    fn is_sound(&self) -> bool {
        self.counts.is_clean() && !stop::is_requested()
    }
}

/// Bytes of one frame as members get it: what a bare server sends.
fn frame_bytes(parameters: &Parameters) -> usize {
    let message = body::Message {
        command: 1,
        content: &vec![b'.'; parameters.bytes.max(MARK_BYTES)],
        room: RoomId::new(ROOM),
        created_at_ms: clock::unix().as_millis() as i64,
        created_at: clock::unix().as_secs() as i64,
        room_epoch: 1,
        room_seq: 1_000,
        ..Default::default()
    };
    frame(Command::Message, "", 0, &message).len()
}
