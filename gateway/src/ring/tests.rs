//! The ring against real sockets: more operations than its queues hold, too few buffers, sockets that take a part, and its
//! end while operations are in flight.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;

fn ring() -> Ring {
    Ring::new(ShardId(0), Arc::new(Doorbell::new().unwrap()), Duration::from_millis(10)).unwrap()
}

fn key() -> SessionKey {
    SessionKey::new(ShardId(0), 1, 1)
}

/// The next completion that is not a tick; whoever waits for one that never comes is stopped by the test's runner.
fn next(ring: &mut Ring) -> Completion {
    loop {
        match ring.next() {
            Some(Completion::Tick | Completion::Doorbell) => {}
            Some(completion) => return completion,
            None => ring.enter(true).unwrap(),
        }
    }
}

fn sent(ring: &mut Ring) -> usize {
    match next(ring) {
        Completion::Sent { result, .. } => result.unwrap(),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn more_sends_than_the_queue_holds_wait_and_all_complete() {
    const COUNT: usize = 20_000;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; COUNT];
        theirs.read_exact(&mut all).unwrap();
        all
    });
    let mut ring = ring();
    for _ in 0..COUNT {
        ring.send(key(), ours.as_fd(), Bytes::from_static(b"x"));
    }
    assert_eq!((0..COUNT).map(|_| sent(&mut ring)).sum::<usize>(), COUNT);
    assert!(ring.backlog.is_empty());
    assert_eq!(reader.join().unwrap(), vec![b'x'; COUNT]);
}

#[test]
fn a_socket_that_takes_a_part_says_how_much() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut ring = ring();
    let bytes = Bytes::from(vec![7; 8 << 20]);
    ring.send(key(), ours.as_fd(), bytes.clone());
    let taken = sent(&mut ring);
    assert!((1..bytes.len()).contains(&taken), "{taken}");
    assert!(bytes.is_unique(), "the ring holds only what is in flight");
}

#[test]
fn a_ring_that_ends_gives_back_what_was_in_flight() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut ring = ring();
    let bytes = Bytes::from(vec![7; 8 << 20]);
    ring.send(key(), ours.as_fd(), bytes.clone());
    sent(&mut ring);
    // The socket is full, so these stay in flight.
    for _ in 0..100 {
        ring.send(key(), ours.as_fd(), bytes.clone());
    }
    ring.receive(key(), ours.as_fd());
    ring.enter(false).unwrap();
    assert!(!bytes.is_unique());
    drop(ring);
    assert!(bytes.is_unique());
}

#[test]
fn without_a_free_buffer_a_receive_ends_and_nothing_is_lost() {
    const BYTES: usize = (buffers::COUNT as usize + 100) * buffers::BUFFER_BYTES;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || {
        theirs.write_all(&vec![9; BYTES]).unwrap();
        theirs
    });
    let mut ring = ring();
    ring.receive(key(), ours.as_fd());
    let (mut received, mut held, mut ends) = (0, Vec::new(), 0);
    while received < BYTES {
        match next(&mut ring) {
            Completion::Received { mut chunk, more, .. } => {
                received += ring.bytes_mut(&mut chunk).iter().filter(|&&byte| byte == 9).count();
                held.push(chunk);
                assert!(more || received <= BYTES);
            }
            Completion::ReceiveEnded { end, .. } => {
                assert_eq!(end, ReceiveEnd::NoBuffer);
                ends += 1;
                held.drain(..).for_each(|chunk| ring.recycle(chunk));
                ring.receive(key(), ours.as_fd());
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(ends >= 1 && ring.counts().no_buffers >= 1);
    held.drain(..).for_each(|chunk| ring.recycle(chunk));
    drop(writer.join().unwrap());
}

#[test]
fn a_receive_of_one_buffer_takes_no_second_one_and_says_whether_there_is_more() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[3; buffers::BUFFER_BYTES + 5]).unwrap();
    let mut ring = ring();
    let once = |ring: &mut Ring| {
        ring.receive_once(key(), ours.as_fd());
        let Completion::Received { mut chunk, more: false, .. } = next(ring) else { panic!("no chunk") };
        let received = (ring.bytes_mut(&mut chunk).to_vec(), chunk.is_full());
        ring.recycle(chunk);
        received
    };
    assert_eq!(once(&mut ring), (vec![3; buffers::BUFFER_BYTES], true));
    assert_eq!(once(&mut ring), (vec![3; 5], false));
    drop(theirs);
    ring.receive_once(key(), ours.as_fd());
    assert!(matches!(next(&mut ring), Completion::ReceiveEnded { end: ReceiveEnd::Eof, .. }));
}
