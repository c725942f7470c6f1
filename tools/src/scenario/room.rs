//! One room, many members, one publisher: server CPU per delivery, beside a bare `send()` loop over as many sockets.
//!
//! A round publishes a window of messages, waits until every member has all of them, and goes on. Rounds of both
//! servers alternate, so that both see the same machine; the medians are compared.

pub mod bare;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use gimbal_codec::{Command, RoomId, body, frame};
use gimbal_rpc::v1::PublishRequest;
use serde::Serialize;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    clock,
    grpc::{Api, Authorized, Credential, explain},
    load::{
        Target, fleet, nanos, progress,
        sockets::{Event, Sockets},
    },
    proc::{ProcessFigures, raise_open_files},
    report::{Latency, LatencyTable, RunFacts, median},
};
use gimbal_rpc::v1::rooms_client::RoomsClient;

/// How long one window may take.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(20);
/// Windows before the first round.
const WARM_UP_WINDOWS: u64 = 20;
/// Descriptors of this process beside its connections.
const FILES_SPARE: u64 = 64;
/// The room; a run has a server of its own, or is alone in this room.
const ROOM: u64 = 0x6c6f_6164;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Members.
    pub members: usize,
    /// Publishes under way at once.
    pub window: usize,
    /// Bytes of each message's content.
    pub bytes: usize,
    /// Length of one round, seconds.
    pub round_s: f64,
    /// Rounds of each server.
    pub rounds: usize,
    /// Measure a bare loop as well.
    pub bare: bool,
}

/// One round of one server.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Members times messages.
    deliveries: u64,
    /// Per second.
    deliveries_per_second: f64,
    /// Server CPU per delivery, microseconds.
    cpu_us_per_delivery: f64,
    /// The same for each name of threads.
    threads: Vec<(String, f64)>,
}

/// The outcome as one JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    /// Every member got every message once and in order.
    pub ok: bool,
    facts: RunFacts,
    parameters: Parameters,
    /// From the publish of a window to its last delivery.
    window_latency: LatencyTable,
    rounds: Vec<Round>,
    bare_rounds: Vec<Round>,
    /// Medians of the rounds.
    cpu_us_per_delivery: f64,
    bare_cpu_us_per_delivery: Option<f64>,
    /// The former over the latter.
    ratio: Option<f64>,
    faults: Vec<String>,
}

/// Runs the scenario. `client_pin` and the like are set before.
///
/// # Errors
/// When the run cannot be made or a window is never complete.
pub fn run(target: &Target, parameters: Parameters, bare_cores: Option<&str>) -> Result<Report> {
    let pid = target
        .pid
        .context("CPU can only be read of a server on this machine: give --server-pid or --start")?;
    ensure!(parameters.members > 0 && parameters.window > 0, "at least one member and one message");
    let files = raise_open_files();
    ensure!(parameters.members as u64 * 2 + FILES_SPARE <= files, "only {files} open files are allowed here");
    let facts = RunFacts::collect(clock::unix());
    let mut room = Room::join(target, &parameters)?;
    let mut bare = match parameters.bare {
        true => Some(bare::Bare::start(&parameters, room.frame_bytes()?, bare_cores)?),
        false => None,
    };
    (0..WARM_UP_WINDOWS).try_for_each(|_| room.window())?;
    let bar = progress(parameters.rounds as u64, "rounds");
    let (mut rounds, mut bare_rounds, mut latency) = (Vec::new(), Vec::new(), Latency::default());
    for _ in 0..parameters.rounds {
        rounds.push(measure(pid, &parameters, &mut latency, || room.window())?);
        if let Some(bare) = &mut bare {
            bare_rounds.push(measure(bare.pid(), &parameters, &mut Latency::default(), || bare.window())?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let middle =
        |rounds: &[Round]| median(&rounds.iter().map(|round| round.cpu_us_per_delivery).collect::<Vec<_>>());
    let cpu_us = middle(&rounds);
    let bare_cpu_us = bare.map(|_| middle(&bare_rounds));
    Ok(Report {
        scenario: "room",
        ok: room.faults.is_empty(),
        facts,
        parameters,
        window_latency: latency.table(),
        rounds,
        bare_rounds,
        cpu_us_per_delivery: cpu_us,
        bare_cpu_us_per_delivery: bare_cpu_us,
        ratio: bare_cpu_us.map(|bare| cpu_us / bare),
        faults: room.faults,
    })
}

fn measure(
    pid: u32,
    parameters: &Parameters,
    latency: &mut Latency,
    mut window: impl FnMut() -> Result<()>,
) -> Result<Round> {
    let read = || ProcessFigures::read(pid).context("cannot read the server's /proc");
    let length = Duration::from_secs_f64(parameters.round_s);
    let (before, start) = (read()?, clock::now());
    let mut windows = 0u64;
    let mut now = start;
    while now - start < length {
        window()?;
        let after = clock::now();
        latency.record(nanos(after - now));
        now = after;
        windows += 1;
    }
    let spent = read()?.since(&before);
    let deliveries = windows * parameters.window as u64 * parameters.members as u64;
    let per_delivery = |cpu_ns: u64| cpu_ns as f64 / 1_000.0 / deliveries.max(1) as f64;
    Ok(Round {
        deliveries,
        deliveries_per_second: deliveries as f64 / (now - start).as_secs_f64(),
        cpu_us_per_delivery: per_delivery(spent.cpu_ns),
        threads: spent.threads.into_iter().map(|thread| (thread.name, per_delivery(thread.cpu_ns))).collect(),
    })
}

/// The members, joined, and the publisher.
struct Room {
    sockets: Sockets,
    runtime: Runtime,
    rooms: RoomsClient<Authorized>,
    publishes: mpsc::Sender<PublishRequest>,
    /// Why the publisher's stream ended.
    failures: std::sync::mpsc::Receiver<anyhow::Error>,
    window: usize,
    content: Bytes,
    /// Last seq each member was given; the first message sets it.
    seqs: Vec<Option<u64>>,
    faults: Vec<String>,
}

impl Room {
    fn join(target: &Target, parameters: &Parameters) -> Result<Self> {
        let runtime = fleet::runtime()?;
        let api = runtime.block_on(Api::connect(&target.grpc))?;
        let count = parameters.members;
        let bar = progress(count as u64, "register");
        let members = runtime.block_on(fleet::register(&api, &target.key, count, &bar))?;
        bar.finish_and_clear();
        let mut sockets = Sockets::new().context("no epoll")?;
        let bar = progress(count as u64, "sign in");
        fleet::sign_in(&mut sockets, target.address, &members, &bar)?;
        bar.finish_and_clear();
        let join = frame(Command::Join, "", 0, &body::Rooms { rooms: vec![RoomId::new(ROOM)] });
        (0..count).for_each(|index| sockets.write(index, |out| out.extend_from_slice(&join)));
        await_joined(&mut sockets, count)?;
        let rooms = api.rooms(Credential::bearer(&target.key)?);
        let content = Bytes::from(vec![b'.'; parameters.bytes]);
        let (window, seqs) = (parameters.window, vec![None; count]);
        let (publishes, failures) = open_publisher(&runtime, rooms.clone(), window);
        let faults = Vec::new();
        let mut room = Self { sockets, runtime, rooms, publishes, failures, window, content, seqs, faults };
        room.await_interest()?;
        Ok(room)
    }

    /// Publishes until control has heard of the room: the word of the first member's join is on its way.
    fn await_interest(&mut self) -> Result<()> {
        let deadline = clock::now() + WINDOW_TIMEOUT;
        loop {
            let reply = self.runtime.block_on(self.rooms.publish(request(&self.content)));
            if reply.map_err(|status| explain("publish", &status))?.into_inner().gateways > 0 {
                let mut got = 0;
                return self.collect(self.seqs.len(), &mut got, deadline);
            }
            ensure!(clock::now() < deadline, "no gateway became interested in the room");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One window: published at once, complete when every member has all of it.
    fn window(&mut self) -> Result<()> {
        for _ in 0..self.window {
            self.publishes.try_send(request(&self.content)).map_err(|_| self.publish_failure())?;
        }
        let (mut got, wanted) = (0, self.window * self.seqs.len());
        let done = self.collect(wanted, &mut got, clock::now() + WINDOW_TIMEOUT);
        done.with_context(|| format!("{got} of {wanted} deliveries came"))
    }

    fn publish_failure(&self) -> anyhow::Error {
        self.failures.try_recv().unwrap_or_else(|_| anyhow!("the server answers no publishes"))
    }

    fn collect(&mut self, wanted: usize, got: &mut usize, deadline: Instant) -> Result<()> {
        let (seqs, faults) = (&mut self.seqs, &mut self.faults);
        while *got < wanted {
            self.sockets.poll(Duration::from_millis(100), &mut |index, event, _| match take(
                &mut seqs[index],
                &event,
            ) {
                Ok(()) => *got += 1,
                Err(why) => faults.push(format!("member {index}: {why}")),
            })?;
            if let Some(fault) = faults.first() {
                bail!("{fault}");
            }
            ensure!(clock::now() < deadline, "a message did not reach all members in time");
        }
        Ok(())
    }

    /// Bytes of one frame as members get it: what a bare server sends.
    fn frame_bytes(&self) -> Result<usize> {
        let message = body::Message {
            command: 1,
            content: &self.content,
            room: RoomId::new(ROOM),
            created_at_ms: clock::unix().as_millis() as i64,
            created_at: clock::unix().as_secs() as i64,
            room_epoch: 1,
            room_seq: 1_000,
            ..Default::default()
        };
        Ok(frame(Command::Message, "", 0, &message).len())
    }
}

/// A stream with room for one window of publishes, whose replies are read and thrown away.
fn open_publisher(
    runtime: &Runtime,
    mut rooms: RoomsClient<Authorized>,
    window: usize,
) -> (mpsc::Sender<PublishRequest>, std::sync::mpsc::Receiver<anyhow::Error>) {
    let (publishes, requests) = mpsc::channel(window);
    let (failed, failures) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let stream = async {
            let mut replies = rooms.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
            while replies.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        if let Err(status) = stream.await {
            let _ = failed.send(explain("publish", &status));
        }
    });
    (publishes, failures)
}

fn request(content: &Bytes) -> PublishRequest {
    PublishRequest { room_id: ROOM, command: 1, content: content.clone() }
}

/// Checks that a frame is the member's next message.
fn take(last: &mut Option<u64>, event: &Event<'_>) -> Result<()> {
    let packet = match event {
        Event::Frame(packet) => packet,
        Event::Closed(why) => bail!("closed: {why}"),
    };
    if packet.command != Command::Message.number() {
        bail!("unexpected command {}", packet.command);
    }
    let seq = body::Message::decode(packet.content)?.room_seq;
    match last.replace(seq) {
        Some(before) if seq != before + 1 => Err(anyhow!("room seq {seq} after {before}")),
        _ => Ok(()),
    }
}

fn await_joined(sockets: &mut Sockets, count: usize) -> Result<()> {
    let deadline = clock::now() + WINDOW_TIMEOUT;
    let (mut joined, mut refused) = (0, None);
    while joined < count {
        sockets.poll(Duration::from_millis(100), &mut |index, event, _| match event {
            Event::Frame(packet) if packet.command == Command::Join.number() => {
                match body::Reply::decode(packet.content) {
                    Ok(reply) if reply.code == 0 => joined += 1,
                    other => refused = Some(format!("member {index}: {other:?}")),
                }
            }
            Event::Frame(_) => {}
            Event::Closed(why) => refused = Some(format!("member {index}: {why}")),
        })?;
        if let Some(why) = refused {
            bail!("cannot join: {why}");
        }
        ensure!(clock::now() < deadline, "only {joined} of {count} joins are answered");
    }
    Ok(())
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let rate = |rounds: &[Round]| {
            median(&rounds.iter().map(|round| round.deliveries_per_second).collect::<Vec<_>>())
        };
        let mut lines = vec![
            format!(
                "room: {} members, {} at once: {:.3} us server CPU per delivery, {:.0} deliveries/s",
                self.parameters.members,
                self.parameters.window,
                self.cpu_us_per_delivery,
                rate(&self.rounds),
            ),
            self.window_latency.line("window"),
        ];
        if let (Some(bare), Some(ratio)) = (self.bare_cpu_us_per_delivery, self.ratio) {
            let per_second = rate(&self.bare_rounds);
            lines.push(format!(
                "bare send loop: {bare:.3} us, {per_second:.0} deliveries/s; ratio {ratio:.2}"
            ));
        }
        if let Some(round) = self.rounds.last() {
            let threads: Vec<String> =
                round.threads.iter().map(|(name, us)| format!("{name} {us:.3}")).collect();
            lines.push(format!("threads, us per delivery: {}", threads.join(", ")));
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT {fault}")));
        lines.join("\n")
    }
}
