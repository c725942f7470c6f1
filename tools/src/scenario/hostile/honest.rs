//! The honest clients: pairs that send each other durable messages, all of them members of one busy room.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail, ensure};
use gimbal_codec::{
    Command, Packet, RoomId,
    body::{Message, Reply, Rooms},
    frame,
};
use serde::Serialize;

use crate::{
    clock,
    ledger::Mark,
    load::{
        nanos,
        publisher::Publisher,
        sockets::{Event, Sockets},
        stage::{Stage, unless_stopped},
        stop,
        watch::Live,
    },
    report::{Latency, Report},
    scenario::steady::{
        Meters,
        pair::{Fleet, Peer},
    },
};

use super::Parameters;

/// Longest wait in one turn.
const TURN_MAX: Duration = Duration::from_millis(20);
/// How long answers and deliveries may take after the last one was asked for.
const PATIENCE_NS: u64 = 30_000_000_000;
/// Their room.
const ROOM: u64 = 0x686f_6e65;

/// Latencies of one round, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Slow {
    /// Deliveries of durable messages.
    pub(super) delivery_p50_us: f64,
    pub(super) delivery_p99_us: f64,
    /// Acknowledgements of durable messages.
    pub(super) ack_p99_us: f64,
    /// Deliveries of the room.
    pub(super) room_p50_us: f64,
    pub(super) room_p99_us: f64,
}

/// The room as its members see it.
#[derive(Default)]
struct Room {
    /// Highest number each was given.
    seqs: Vec<Option<u64>>,
    joined: usize,
    published: u64,
    delivered: u64,
    latency: Latency,
}

/// All of them.
pub(super) struct Honest {
    sockets: Sockets,
    pub(super) fleet: Fleet,
    pub(super) meters: Meters,
    publisher: Publisher,
    room: Room,
    /// Room messages that some member was never given.
    pub(super) missed: u64,
    rate: f64,
    publishes: f64,
    live: Arc<Live>,
}

impl Honest {
    /// Signed in with `sockets` as the first of the stage's members; they join their room.
    pub(super) fn new(sockets: Sockets, stage: &Stage<'_>, parameters: &Parameters) -> Result<Self> {
        let count = parameters.honest;
        let peers = (0..count).map(|index| Peer::new(stage.members[index ^ 1].user, index)).collect();
        let run = nanos(clock::unix());
        let mut honest = Self {
            sockets,
            fleet: Fleet { run, bytes: parameters.bytes, peers },
            meters: Meters::default(),
            publisher: Publisher::new(stage, ROOM, parameters.bytes)?,
            room: Room { seqs: vec![None; count], ..Room::default() },
            missed: 0,
            rate: parameters.rate,
            publishes: parameters.publishes,
            live: Arc::clone(&stage.live),
        };
        let join = frame(Command::Join, "", 0, &Rooms { rooms: vec![RoomId::new(ROOM)] });
        (0..count).for_each(|index| honest.sockets.write(index, |out| out.extend_from_slice(&join)));
        let end = clock::shared_ns() + PATIENCE_NS;
        while honest.room.joined < count {
            honest.turn(TURN_MAX)?;
            unless_stopped("joining")?;
            ensure!(honest.meters.faults.is_empty(), "{}", honest.meters.faults.join("; "));
            ensure!(clock::shared_ns() < end, "joins are not answered");
        }
        honest.publisher.await_interest()?;
        Ok(honest)
    }

    /// Their ports.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.sockets.local_ports()
    }

    /// Sends for `lead_s` unmeasured and for `round_s` measured, and waits until all of it has arrived.
    pub(super) fn round(&mut self, lead_s: f64, round_s: f64) -> Result<Slow> {
        let begin = clock::shared_ns();
        self.meters.measure_from_ns = begin + nanos(Duration::from_secs_f64(lead_s));
        self.meters.measure_to_ns = self.meters.measure_from_ns + nanos(Duration::from_secs_f64(round_s));
        (self.room.published, self.room.delivered) = (0, 0);
        let (mut sent, mut published) = (0u64, 0u64);
        while !stop::is_requested() {
            self.meters.now_ns = clock::shared_ns();
            if self.meters.now_ns >= self.meters.measure_to_ns {
                break;
            }
            let send_at = begin + (sent as f64 * 1e9 / self.rate) as u64;
            let publish_at = begin + (published as f64 * 1e9 / self.publishes) as u64;
            let next = send_at.min(publish_at);
            if next > self.meters.now_ns {
                self.turn(Duration::from_nanos(next - self.meters.now_ns).min(TURN_MAX))?;
                continue;
            }
            if send_at <= publish_at {
                self.send(sent, send_at);
                sent += 1;
            } else {
                self.publisher.publish(publish_at);
                published += 1;
                self.room.published += 1;
            }
            if next + nanos(TURN_MAX) < self.meters.now_ns {
                self.turn(Duration::ZERO)?; // late: arrivals may not wait for all that is due
            }
        }
        self.drain()?;
        Ok(self.take_latencies())
    }

    fn send(&mut self, number: u64, at_ns: u64) {
        let index = (number % self.fleet.peers.len() as u64) as usize;
        if self.fleet.peers[index].closed {
            return;
        }
        let fleet = &mut self.fleet;
        self.sockets.write(index, |out| fleet.send(index, at_ns, out));
        self.meters.counts.sent += 1;
    }

    /// Waits for what is open.
    fn drain(&mut self) -> Result<()> {
        let end = clock::shared_ns() + PATIENCE_NS;
        let due = self.room.published * self.room.seqs.len() as u64;
        while clock::shared_ns() < end && self.sockets.open() > 0 {
            if self.fleet.is_complete() && self.room.delivered >= due {
                break;
            }
            self.turn(TURN_MAX)?;
        }
        if self.room.delivered < due && !stop::is_requested() {
            self.missed += due - self.room.delivered;
        }
        while let Some(failure) = self.publisher.failure() {
            self.meters.counts.refused += 1;
            self.meters.fault(format!("{failure:#}"));
        }
        Ok(())
    }

    fn take_latencies(&mut self) -> Slow {
        let meters = &mut self.meters;
        let table = |latency: &mut Latency| std::mem::take(latency).table();
        let (delivery, ack) = (table(&mut meters.deliveries), table(&mut meters.round_acks));
        let room = table(&mut self.room.latency);
        Slow {
            delivery_p50_us: delivery.p50_us,
            delivery_p99_us: delivery.p99_us,
            ack_p99_us: ack.p99_us,
            room_p50_us: room.p50_us,
            room_p99_us: room.p99_us,
        }
    }

    /// Goes on reading, unmeasured, until `is_done` or the patience is over; whether it was done.
    pub(super) fn wait_until(
        &mut self,
        patience: Duration,
        mut is_done: impl FnMut() -> bool,
    ) -> Result<bool> {
        let end = clock::shared_ns() + nanos(patience);
        while !is_done() {
            if clock::shared_ns() > end || stop::is_requested() {
                return Ok(false);
            }
            for _ in 0..10 {
                self.turn(TURN_MAX)?;
            }
        }
        Ok(true)
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        let (fleet, meters, room) = (&mut self.fleet, &mut self.meters, &mut self.room);
        self.sockets.poll(wait, &mut |index, event, out| {
            meters.now_ns = clock::shared_ns();
            let of_room = match &event {
                Event::Frame(packet) => room.take(index, packet, meters),
                Event::Closed(_) => Ok(false),
            };
            match of_room {
                Ok(true) => {}
                Ok(false) => fleet.handle(index, event, out, meters),
                Err(why) => {
                    meters.counts.unexpected += 1;
                    Report::fault(&mut meters.faults, format!("connection {index}: {why}"));
                }
            }
        })?;
        let counts = &self.meters.counts;
        Live::set(&self.live.sent, counts.sent);
        Live::set(&self.live.acked, counts.acked);
        Live::set(&self.live.delivered, counts.delivered);
        Live::set(&self.live.online, self.sockets.open() as u64);
        Ok(())
    }
}

impl Room {
    /// Whether the packet was about the room.
    fn take(&mut self, index: usize, packet: &Packet<'_>, meters: &mut Meters) -> Result<bool> {
        match Command::try_from(packet.command) {
            Ok(Command::Join) => {
                let reply = Reply::decode(packet.content)?;
                ensure!(reply.code == 0, "join refused: {} ({})", reply.message, reply.code);
                self.joined += 1;
                Ok(true)
            }
            Ok(Command::Message) => {
                let message = Message::decode(packet.content)?;
                if message.room.is_none() {
                    return Ok(false);
                }
                self.message(index, &message, meters)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn message(&mut self, index: usize, message: &Message<'_>, meters: &mut Meters) -> Result<()> {
        let before = self.seqs[index].replace(message.room_seq);
        if before.is_some_and(|before| message.room_seq <= before) {
            bail!("room message {} after {before:?}", message.room_seq);
        }
        self.delivered += 1;
        meters.counts.delivered += 1;
        let mark = Mark::read(message.content).filter(|mark| meters.measures(mark.intended_ns));
        if let Some(mark) = mark {
            self.latency.record(meters.now_ns.saturating_sub(mark.intended_ns));
        }
        Ok(())
    }
}
