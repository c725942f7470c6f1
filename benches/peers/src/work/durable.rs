//! Sends that are acknowledged when they are on disk; nobody is online to receive them. Beside them, the disk itself.

use std::{
    fs::{self, File},
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gimbal::{clock, load::nanos, report::Latency};
use gimbal_codec::UserId;

use super::{Done, Machine, Meter, PAYLOAD_BYTES, Parameters, Values, add_latency};
use crate::{
    conns::{ANSWER_TIMEOUT, TURN},
    dialect::{Event, gimbal as own, nats},
    server::Peer,
    side::Side,
};

/// Recipients, all offline; the connections write to them in turn.
const RECIPIENTS: usize = 64;
/// Connections, and sends of each under way at once.
const SHAPES: [(usize, usize); 2] = [(64, 1), (1, 64)];
/// One append before each sync of the bare bound.
const APPEND_BYTES: usize = 1024;
/// All that is sent lies in this stream.
const STREAM: &[u8] =
    br#"{"name":"D","subjects":["d.*"],"storage":"file","retention":"limits","max_msgs":-1,"num_replicas":1}"#;

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer) -> Result<Done> {
    if peer == Peer::Bare {
        return Ok(vec![("durable/disk".to_owned(), sync_appends(machine, parameters)?)]);
    }
    let mut done = Done::new();
    for (connections, window) in SHAPES {
        let mut sends = Sends::start(machine, peer, connections)?;
        done.push((format!("durable/{connections}x{window}"), sends.measure(parameters, window)?));
    }
    Ok(done)
}

/// One 1 KiB append and one `fdatasync` after the other.
fn sync_appends(machine: &Machine, parameters: &Parameters) -> Result<Values> {
    let path = machine.work_dir.join("appends");
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let (mut latency, meter) = (Latency::default(), Meter::start(std::process::id())?);
    let (start, mut count) = (clock::now(), 0);
    let mut now = start;
    while now - start < parameters.measured() {
        file.write_all(&[b'.'; APPEND_BYTES]).context("cannot append")?;
        file.sync_data().context("cannot sync")?;
        let after = clock::now();
        latency.record(nanos(after - now));
        now = after;
        count += 1;
    }
    let mut values = meter.stop()?.values(count);
    values.retain(|key, _| *key == "per_s");
    add_latency(&mut values, &latency.table());
    fs::remove_file(path).context("cannot remove our own file")?;
    Ok(values)
}

struct Sends {
    side: Side,
    connections: usize,
    recipients: Vec<UserId>,
    /// Sends of each connection that are not acknowledged: number and when it was sent.
    open: Vec<Vec<(u64, Instant)>>,
    /// The next number; one series for all connections.
    next: u64,
    acked: u64,
}

impl Sends {
    fn start(machine: &Machine, peer: Peer, connections: usize) -> Result<Self> {
        let mut side = Side::start(machine, peer, true, connections + RECIPIENTS)?;
        side.open(connections)?;
        let mut recipients = Vec::new();
        match peer {
            Peer::Gimbal => {
                for index in 0..RECIPIENTS {
                    recipients.push(side.user(connections + index)?);
                }
            }
            Peer::Nats => make_stream(&mut side)?,
            _ => bail!("{} stores nothing", peer.name()),
        }
        let open = vec![Vec::new(); connections];
        Ok(Self { side, connections, recipients, open, next: 1, acked: 0 })
    }

    fn measure(&mut self, parameters: &Parameters, window: usize) -> Result<Values> {
        for index in 0..self.connections {
            for _ in 0..window {
                self.send(index, clock::now());
            }
        }
        self.run_for(parameters.warm_up(), &mut Latency::default())?;
        let (mut latency, before) = (Latency::default(), self.acked);
        let meter = Meter::start(self.side.server.pid())?;
        self.run_for(parameters.measured(), &mut latency)?;
        let mut values = meter.stop()?.values(self.acked - before);
        add_latency(&mut values, &latency.table());
        self.drain()?;
        Ok(values)
    }

    fn send(&mut self, index: usize, now: Instant) {
        let (number, payload) = (self.next, [b'.'; PAYLOAD_BYTES]);
        self.next += 1;
        self.open[index].push((number, now));
        let recipient = number as usize % RECIPIENTS;
        let user = self.recipients.get(recipient).copied();
        self.side.conns.write(index, |out| match user {
            Some(user) => own::send(user, number, &payload, out),
            None => nats::request(&format!("d.{recipient}"), index, number, &payload, out),
        });
    }

    fn run_for(&mut self, time: Duration, latency: &mut Latency) -> Result<()> {
        let end = clock::now() + time;
        while clock::now() < end {
            for index in self.turn(latency)? {
                self.send(index, clock::now());
            }
        }
        Ok(())
    }

    /// One turn; returns the connections of the sends that were acknowledged.
    fn turn(&mut self, latency: &mut Latency) -> Result<Vec<usize>> {
        let (open, mut due, mut unknown) = (&mut self.open, Vec::new(), 0);
        let mut now = None;
        self.side.conns.turn(TURN, &mut |index, event, _| {
            let Event::Ack(number) = event else { return };
            let now = *now.get_or_insert_with(clock::now);
            match open[index].iter().position(|(sent, _)| *sent == number) {
                Some(at) => {
                    let (_, sent_at) = open[index].swap_remove(at);
                    latency.record(nanos(now.saturating_duration_since(sent_at)));
                    due.push(index);
                }
                None => unknown += 1,
            }
        })?;
        ensure!(unknown == 0, "{unknown} acknowledgements belong to no open send");
        self.acked += due.len() as u64;
        Ok(due)
    }

    /// Waits until every send is acknowledged, once.
    fn drain(&mut self) -> Result<()> {
        let deadline = clock::now() + ANSWER_TIMEOUT;
        while self.open.iter().any(|open| !open.is_empty()) {
            self.turn(&mut Latency::default())?;
            ensure!(clock::now() < deadline, "sends are not acknowledged");
        }
        ensure!(self.acked == self.next - 1, "{} of {} sends were acknowledged", self.acked, self.next - 1);
        Ok(())
    }
}

/// Each connection listens for its answers; the first asks for the stream.
fn make_stream(side: &mut Side) -> Result<()> {
    side.conns.ask(&mut |index, out| {
        nats::subscribe(&nats::inbox(index), out);
        1
    })?;
    side.conns.write(0, |out| nats::request("$JS.API.STREAM.CREATE.D", 0, 0, STREAM, out));
    let (deadline, mut made) = (clock::now() + ANSWER_TIMEOUT, false);
    while !made {
        side.conns.turn(TURN, &mut |_, event, _| made |= event == Event::Ack(0))?;
        ensure!(clock::now() < deadline, "the stream is not made");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streams_wish_is_json() {
        let value: serde_json::Value = serde_json::from_slice(STREAM).unwrap();
        assert_eq!(value["storage"], "file");
    }
}
