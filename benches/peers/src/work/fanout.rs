//! One room: a burst is published, and the next when every member has all of it.

use std::{
    io::Write as _,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use gimbal::{
    clock,
    grpc::{Authorized, explain},
    load::nanos,
    report::Latency,
};
use gimbal_rpc::v1::{PublishRequest, rooms_client::RoomsClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Done, Machine, Meter, PAYLOAD_BYTES, Parameters, Values, WINDOW_MAX, add_latency};
use crate::{conns::ANSWER_TIMEOUT, dialect::gimbal::ROOM, server::Peer, side::Side};

/// Fewest bursts that warm up, and that are measured: the slowest take seconds for one.
const WARM_UP_BURSTS: u64 = 2;
const BURSTS_MIN: u64 = 3;

/// Who publishes.
enum Publisher {
    /// One more connection, at this index, which writes these bytes for each message.
    Connection(usize, Vec<u8>),
    /// gimbal's stream of publishes, and why it ended.
    Stream(mpsc::Sender<PublishRequest>, std::sync::mpsc::Receiver<anyhow::Error>),
    /// The bare loop's asker.
    Asker(TcpStream),
}

struct FanOut {
    side: Side,
    members: usize,
    publisher: Publisher,
    /// Messages published.
    published: u64,
}

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer, members: usize) -> Result<Done> {
    let mut room = match peer {
        Peer::Bare => FanOut::start_bare(machine, members)?,
        _ => FanOut::start(machine, peer, members)?,
    };
    let mut done = Done::new();
    for &window in &parameters.windows {
        done.push((format!("fanout/{members}/{window}"), room.measure(parameters, window)?));
    }
    for index in 0..members {
        let got = room.side.conns.deliveries_of(index);
        ensure!(got == room.published, "member {index} got {got} of {} messages", room.published);
    }
    Ok(done)
}

impl FanOut {
    fn start_bare(machine: &Machine, members: usize) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let (members_text, payload) = (members.to_string(), PAYLOAD_BYTES.to_string());
        let arguments = ["bare-sender", "--members", &members_text, "--payload-bytes", &payload];
        let server = machine.start_bare(&program, &arguments)?;
        let asker = TcpStream::connect(server.address).context("cannot connect to the bare sender")?;
        asker.set_nodelay(true)?;
        let mut side = Side::of_bare(server)?;
        side.open(members)?;
        Ok(Self { side, members, publisher: Publisher::Asker(asker), published: 0 })
    }

    fn start(machine: &Machine, peer: Peer, members: usize) -> Result<Self> {
        let mut side = Side::start(machine, peer, false, members)?;
        side.open(members)?;
        side.join_room()?;
        let publisher = match side.message_to_room(&[b'.'; PAYLOAD_BYTES]) {
            Some(message) => {
                side.open(1)?;
                Publisher::Connection(members, message)
            }
            None => open_stream(&side)?,
        };
        let mut room = Self { side, members, publisher, published: 0 };
        room.await_interest()?;
        Ok(room)
    }

    /// gimbal's control hears of a room with the first member's join, on a way of its own: publishes until it has.
    fn await_interest(&mut self) -> Result<()> {
        if self.side.peer != Peer::Gimbal {
            return Ok(());
        }
        let (accounts, credential) = self.side.accounts()?;
        let mut rooms = accounts.api.rooms(credential);
        let deadline = clock::now() + ANSWER_TIMEOUT;
        loop {
            let reply = accounts.runtime.block_on(rooms.publish(request()));
            if reply.map_err(|status| explain("publish", &status))?.into_inner().gateways > 0 {
                break;
            }
            ensure!(clock::now() < deadline, "no gateway became interested in the room");
            thread::sleep(Duration::from_millis(20));
        }
        self.published += 1;
        self.side.conns.await_deliveries(self.members as u64, deadline)
    }

    fn measure(&mut self, parameters: &Parameters, window: usize) -> Result<Values> {
        self.repeat(parameters.warm_up(), WARM_UP_BURSTS, window, &mut Latency::default())?;
        let (messages, bytes) = (self.published, self.side.conns.received_bytes);
        let (mut latency, meter) = (Latency::default(), Meter::start(self.side.server.pid())?);
        self.repeat(parameters.measured(), BURSTS_MIN, window, &mut latency)?;
        let deliveries = (self.published - messages) * self.members as u64;
        let mut values = meter.stop()?.values(deliveries);
        add_latency(&mut values, &latency.table());
        let received = self.side.conns.received_bytes - bytes;
        values.insert("bytes", received as f64 / deliveries as f64);
        Ok(values)
    }

    fn repeat(
        &mut self,
        time: Duration,
        bursts_min: u64,
        window: usize,
        latency: &mut Latency,
    ) -> Result<()> {
        let start = clock::now();
        let (mut now, mut bursts) = (start, 0);
        while now - start < time || bursts < bursts_min {
            self.burst(window, now + ANSWER_TIMEOUT)?;
            let after = clock::now();
            latency.record(nanos(after - now));
            now = after;
            bursts += 1;
        }
        Ok(())
    }

    fn burst(&mut self, window: usize, deadline: Instant) -> Result<()> {
        match &mut self.publisher {
            Publisher::Connection(index, message) => {
                self.side.conns.write(*index, |out| (0..window).for_each(|_| out.extend_from_slice(message)));
            }
            Publisher::Asker(asker) => asker.write_all(&[window as u8]).context("the bare sender is gone")?,
            Publisher::Stream(publishes, failures) => {
                for _ in 0..window {
                    let why = |_| failures.try_recv().unwrap_or_else(|_| anyhow!("publishes are not taken"));
                    publishes.try_send(request()).map_err(why)?;
                }
            }
        }
        self.published += window as u64;
        let wanted = self.published * self.members as u64;
        self.side.conns.await_deliveries(wanted, deadline)
    }
}

/// A stream with room for the longest burst, whose replies are read and thrown away.
fn open_stream(side: &Side) -> Result<Publisher> {
    let (accounts, credential) = side.accounts()?;
    let mut rooms: RoomsClient<Authorized> = accounts.api.rooms(credential);
    let (publishes, requests) = mpsc::channel(WINDOW_MAX);
    let (failed, failures) = std::sync::mpsc::sync_channel(1);
    accounts.runtime.spawn(async move {
        let stream = async {
            let mut replies = rooms.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
            while replies.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        if let Err(status) = stream.await {
            let _ = failed.send(explain("publish", &status));
        }
    });
    Ok(Publisher::Stream(publishes, failures))
}

fn request() -> PublishRequest {
    PublishRequest { room_id: ROOM, command: 1, content: Bytes::from_static(&[b'.'; PAYLOAD_BYTES]) }
}
