//! Parts of a shard: session, fan-out, timers, inbox. They are private to the gateway, so they are compiled into this crate
//! from its source: nothing has to be public for benchmarks alone.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use gimbal_codec::{
    Attach, Command, Decoder, DeviceId, Packet, RoomId, Seq, SessionKey, ShardId, UserId, body, frame, limits,
};
use gimbal_rpc::link::{Body, Down, Grant};

use crate::fanout::{Bursts, Offered, offer};
use crate::gateway::shard::{
    inbox::{Inbox, Item},
    timers::Timers,
};
use crate::ring::Doorbell;
use crate::send_queue::SendQueue;
use crate::session::{Action, Counts, Deliver, Limits, Moment, Session, Turn};
use crate::{CONTENT_BYTES, Rng, send_frame};

/// Of the room.
pub const MEMBERS: usize = 1_000;
/// Of the chunk.
pub const SENDS: u64 = 16;
/// Longest buffer joined for one send.
const JOIN_BYTES: usize = 64 * 1024;

fn key(index: u32) -> SessionKey {
    SessionKey::new(ShardId(0), index, 1)
}

/// One connection with what a shard keeps for it.
struct Connection {
    session: Session,
    queue: SendQueue,
    limits: Limits,
    counts: Counts,
    out: Vec<Action>,
}

const ATTACH: Attach = Attach::new(1);

impl Connection {
    /// Signed in with a cursor of 0.
    fn online(index: u32) -> Self {
        let limits = Limits::default();
        let session = Session::new(Moment::from_ms(0), &limits);
        let mut connection =
            Self { session, queue: SendQueue::default(), limits, counts: Counts::default(), out: Vec::new() };
        let sign_in = body::SignIn {
            user: UserId::new(10_000 + u64::from(index)),
            device: DeviceId::new(10_000),
            token: "00",
            cursor: Some(Seq::new(0)),
        };
        connection.frame(&packet(&frame(Command::SignIn, "1", 0, &sign_in)));
        connection.turn(|session, turn| {
            session.handle_signed_in(ATTACH, Seq::new(0), Grant::default(), turn).expect("online");
        });
        assert!(connection.session.is_online());
        connection.drain();
        connection
    }

    fn turn<T>(&mut self, work: impl FnOnce(&mut Session, &mut Turn<'_>) -> T) -> T {
        let mut turn = Turn {
            key: key(0),
            now: Moment::from_ms(1_000),
            unix_ms: 1_700_000_000_000,
            link: 1,
            limits: &self.limits,
            queue: &mut self.queue,
            out: &mut self.out,
            counts: &mut self.counts,
        };
        work(&mut self.session, &mut turn)
    }

    fn frame(&mut self, packet: &[u8]) {
        self.turn(|session, turn| session.handle_frame(packet, turn)).expect("welcome");
    }

    /// Takes what waits for the socket, as if the kernel had taken it; its length.
    fn drain(&mut self) -> usize {
        let mut total = 0;
        while let Some(bytes) = self.queue.start_send(JOIN_BYTES) {
            total += bytes.len();
            self.queue.finish_send(bytes.len());
        }
        self.out.clear();
        total
    }
}

/// The packet of a frame whose length takes one or two bytes.
fn packet(frame: &Bytes) -> Bytes {
    frame.slice(if frame[0] < 0x80 { 1 } else { 2 }..)
}

/// One frame or delivery through one session.
pub fn sessions(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    group.throughput(Throughput::Elements(1));
    group.bench_function("heartbeat_and_echo", |b| b.iter(heartbeat()));
    group.bench_function("send_to_link", |b| b.iter(send_to_link()));
    group.bench_function("deliver_live", |b| b.iter(deliver_live()));
    group.finish();
}

/// Frames of a room to all its members, up to the buffers for the kernel.
pub fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan_out_to_1000");
    group.throughput(Throughput::Elements(MEMBERS as u64));
    for frames in [1, 16] {
        group.bench_function(format!("{frames}_frames_in_a_turn"), |b| b.iter(to_members(frames)));
    }
    group.finish();
}

/// A heartbeat from chunk to echo.
pub fn heartbeat() -> impl FnMut() {
    let mut connection = Connection::online(0);
    let heartbeat = frame(Command::Heartbeat, "7", 0, &());
    move || {
        connection.frame(&black_box(&heartbeat)[1..]);
        assert_eq!(connection.drain(), heartbeat.len());
    }
}

/// A send from frame to the item for control.
pub fn send_to_link() -> impl FnMut() {
    let mut connection = Connection::online(0);
    let send = packet(&send_frame(&mut Rng::new(6), UserId::new(10_001), 1));
    move || {
        connection.frame(black_box(&send));
        assert!(matches!(connection.out[..], [Action::Up(_)]));
        // Ends the call: only so many may be under way.
        connection.turn(|session, turn| session.handle_link_lost(turn)).expect("nothing to answer");
        connection.drain();
    }
}

/// A stored message from control to the buffer for the kernel.
pub fn deliver_live() -> impl FnMut() {
    let mut connection = Connection::online(0);
    let body = Body {
        message_id: gimbal_codec::MessageId::new(1),
        from_user: UserId::new(10_001),
        from_device: DeviceId::new(10_001),
        command: 1,
        content: Rng::new(7).bytes(CONTENT_BYTES),
        created_at_ms: 1_700_000_000_000,
        ..Body::default()
    };
    let mut seq = Seq::new(0);
    move || {
        seq = seq.next();
        let mut deliver = Deliver::new(black_box(&body), 1);
        connection
            .turn(|session, turn| session.handle_deliver(ATTACH, seq, &mut deliver, turn))
            .expect("room");
        assert!(connection.drain() > CONTENT_BYTES);
    }
}

/// One turn's `frames` of a room to [`MEMBERS`] members.
pub fn to_members(frames: usize) -> impl FnMut() {
    let mut members: Vec<Connection> = (0..MEMBERS).map(|index| Connection::online(index as u32)).collect();
    let content = Rng::new(8).bytes(CONTENT_BYTES);
    let message = body::Message { room: RoomId::new(1), content: &content, ..body::Message::default() };
    let one = frame(Command::Message, "", 0, &message);
    let mut bursts = Bursts::default();
    move || {
        for _ in 0..frames {
            bursts.add(RoomId::new(1), one.clone());
        }
        for burst in bursts.drain() {
            let bytes = burst.join();
            for member in &mut members {
                let limit = member.limits.queue_bytes_max;
                assert_eq!(offer(&member.session, &mut member.queue, &bytes, limit), Offered::Queued);
            }
        }
        for member in &mut members {
            assert_eq!(member.drain(), one.len() * frames);
        }
    }
}

/// One chunk of sends to packets and bodies; `SENDS` of them.
pub fn decode_sends() -> impl FnMut() {
    let mut rng = Rng::new(1);
    let stream: Vec<u8> = (1..=SENDS).flat_map(|id| send_frame(&mut rng, UserId::new(10_000), id)).collect();
    move || {
        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(black_box(&stream));
        let mut count = 0;
        while let Some(bytes) = feed.next_frame(limits::FRAME_BYTES_MAX).expect("valid") {
            let packet = Packet::decode(bytes).expect("valid");
            assert_eq!(body::Send::decode(packet.content).expect("valid").content.len(), CONTENT_BYTES);
            count += 1;
        }
        assert_eq!(count, SENDS);
    }
}

/// The deadlines of ten thousand connections.
pub fn timers(c: &mut Criterion) {
    const COUNT: u32 = 10_000;
    let mut group = c.benchmark_group("timers");
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    let mut rng = Rng::new(9);
    let deadlines: Vec<Moment> = (0..COUNT).map(|_| Moment::from_ms(600_000 + rng.below(60_000))).collect();
    let armed = || {
        let mut timers = Timers::new(Moment::from_ms(0));
        deadlines.iter().enumerate().for_each(|(index, deadline)| timers.arm(index as u32, *deadline));
        timers
    };
    group.bench_function("arm", |b| b.iter_with_large_drop(armed));
    let mut busy = armed();
    group.bench_function("arm_later", |b| {
        let mut now = 0;
        b.iter(|| {
            now += 1;
            (0..COUNT).for_each(|index| busy.arm(index, Moment::from_ms(700_000 + now)));
        });
        let mut due = Vec::new();
        busy.expire(Moment::from_ms(600_000), COUNT as usize, &mut due);
        assert!(due.is_empty(), "none is due");
    });
    group.bench_function("expire", |b| {
        let end = Moment::from_ms(700_000);
        b.iter_batched(
            armed,
            |mut timers| {
                let mut due = Vec::with_capacity(COUNT as usize);
                timers.expire(end, COUNT as usize, &mut due);
                assert_eq!(due.len(), COUNT as usize);
                (timers, due)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// Items from another thread; the doorbell is silent, as for a shard that is awake.
pub fn inbox(c: &mut Criterion) {
    const ITEMS: usize = 256;
    let doorbell = Arc::new(Doorbell);
    let inbox = Inbox::new(1 << 16, 64 << 20, doorbell);
    let content = Rng::new(10).bytes(CONTENT_BYTES);
    let mut group = c.benchmark_group("inbox");
    group.throughput(Throughput::Elements(ITEMS as u64));
    group.bench_function("push_a_batch_and_pop_it", |b| {
        b.iter(|| {
            for _ in 0..ITEMS {
                inbox.push(Item::Down(Down::Room { room: RoomId::new(1), frame: content.clone() }));
            }
            inbox.ring();
            let mut count = 0;
            while inbox.pop().is_some() {
                count += 1;
            }
            assert_eq!(count, ITEMS);
        });
    });
    assert_eq!(inbox.lost(), 0);
    group.finish();
}
