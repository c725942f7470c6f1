//! Bytes to frames to values and back.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gimbal_benches::{CONTENT_BYTES, Rng, send_frame};
use gimbal_codec::{Command, Decoder, MessageId, Packet, Seq, UserId, body, frame, limits};

const FRAMES: u64 = 256;
/// What one receive of a busy connection brings at most.
const CHUNK_BYTES: usize = 4096;

fn stream() -> Vec<u8> {
    let mut rng = Rng::new(1);
    (1..=FRAMES).flat_map(|id| send_frame(&mut rng, UserId::new(10_000), id)).collect()
}

/// Cuts the stream into frames and reads packet and send of each; how many there were.
fn decode(stream: &[u8], chunk_bytes: usize) -> u64 {
    let (mut decoder, mut count) = (Decoder::new(), 0);
    for chunk in stream.chunks(chunk_bytes) {
        let mut feed = decoder.feed(chunk);
        while let Some(bytes) = feed.next_frame(limits::FRAME_BYTES_MAX).expect("valid") {
            let packet = Packet::decode(bytes).expect("valid");
            let send = body::Send::decode(packet.content).expect("valid");
            assert_eq!(send.content.len(), CONTENT_BYTES);
            count += 1;
        }
    }
    count
}

fn decoding(c: &mut Criterion) {
    let stream = stream();
    let mut group = c.benchmark_group("codec/decode_send");
    group.throughput(Throughput::Elements(FRAMES));
    for (name, chunk_bytes) in [("in_chunks", CHUNK_BYTES), ("byte_by_byte", 1)] {
        group
            .bench_function(name, |b| b.iter(|| assert_eq!(decode(black_box(&stream), chunk_bytes), FRAMES)));
    }
    group.finish();
}

fn encoding(c: &mut Criterion) {
    let content = Rng::new(2).bytes(CONTENT_BYTES);
    let message = body::Message {
        content: &content,
        seq: Seq::new(77),
        id: MessageId::new(1 << 41),
        from_user: UserId::new(10_001),
        created_at: 1_700_000_000,
        created_at_ms: 1_700_000_000_123,
        ..body::Message::default()
    };
    let mut group = c.benchmark_group("codec/encode_message");
    let bytes = frame(Command::Message, "", 0, &message).len();
    assert!(bytes > CONTENT_BYTES);
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("frame", |b| {
        b.iter(|| assert_eq!(frame(Command::Message, "", 0, black_box(&message)).len(), bytes));
    });
    group.finish();
}

criterion_group!(benches, decoding, encoding);
criterion_main!(benches);
