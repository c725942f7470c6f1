//! QUIC: the same sessions as on TCP, and what only QUIC can do.

use std::time::Duration;

use gimbal_codec::body::Send;
use gimbal_codec::{ClientMessageId, CloseReason, Command, UserId};
use gimbal_gateway::config::Config;

use crate::quic_client::{ALPN, Quicly, closed};
use crate::support::eventually;

fn usual(_: &mut Config) {}

#[test]
fn a_device_signs_in_and_its_heartbeats_come_back() {
    let quic = Quicly::new(usual);
    let mut client = quic.online(1);
    for _ in 0..3 {
        assert!(client.flush().is_empty());
    }
    quic.world.await_connections(1);
    client.shutdown_write();
    quic.world.await_connections(0);
    quic.world.await_dropped("peer_gone", 1);
}

#[test]
fn sessions_of_both_transports_are_sent_the_same_in_the_same_order() {
    let quic = Quicly::new(usual);
    let mut streams = quic.world.online_as(7, 1, Some(0));
    let mut datagrams = quic.online_as(7, 2, Some(0));
    let mut sender = quic.online(8);
    streams.join(&[5]);
    datagrams.join(&[5]);
    eventually(|| quic.world.control.room_members(5) == 2, "members");
    for id in 1..=50 {
        let content = vec![id as u8; 20 * id as usize];
        let send = Send {
            client_message_id: ClientMessageId::new(id),
            to: UserId::new(7),
            command: 1,
            content: &content,
            ..Send::default()
        };
        sender.send(Command::Send, id, &send);
        assert!(sender.packet().unwrap().is(Command::Send));
        quic.world.control.publish(5, &id.to_be_bytes());
    }
    let stored = |got: &crate::support::Got| got.message_seq();
    let (mut one, mut two): (Vec<_>, Vec<_>) =
        (0..100).map(|_| (streams.packet().unwrap(), datagrams.packet().unwrap())).unzip();
    for got in [&mut one, &mut two] {
        let seqs: Vec<_> = got.iter().map(stored).filter(|seq| *seq > 0).collect();
        assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
        got.retain(|got| stored(got) == 0);
        let rooms: Vec<_> = got.iter().map(|got| got.message_content()).collect();
        assert_eq!(rooms, (1u64..=50).map(|id| id.to_be_bytes().to_vec()).collect::<Vec<_>>());
    }
}

#[test]
fn one_device_has_one_session_whichever_way_it_comes() {
    let quic = Quicly::new(usual);
    let mut first = quic.world.online_as(3, 3, None);
    let mut second = quic.online_as(3, 3, None);
    assert_eq!(first.close_code(), CloseReason::Takeover.code());
    assert!(second.flush().is_empty());
    let mut third = quic.world.online_as(3, 3, None);
    assert_eq!(second.close_code(), CloseReason::Takeover.code());
    assert_eq!(second.socket.closed(), (4201, "takeover".to_owned()));
    assert!(third.flush().is_empty());
    quic.world.await_connections(1);
}

#[test]
fn a_client_that_moves_keeps_its_session_and_misses_nothing() {
    let quic = Quicly::new(usual);
    let mut client = quic.online_as(4, 4, Some(0));
    let session = quic.world.control.session(4, 4);
    let mut seq = 0;
    for step in 1..=5 {
        client.socket.rebind();
        for _ in 0..20 {
            seq += 1;
            quic.world.control.push(4, vec![1; 500]);
        }
        // The first packet from the new address tells the server where that is.
        let before = client.flush();
        let mut seqs: Vec<_> = before.iter().map(|got| got.message_seq()).collect();
        while *seqs.last().unwrap_or(&0) < seq {
            seqs.push(client.packet().unwrap().message_seq());
        }
        assert_eq!(seqs, (seq - 19..=seq).collect::<Vec<_>>(), "{step}");
    }
    assert_eq!(quic.world.control.session(4, 4), session, "nobody has signed in again");
    assert_eq!(quic.world.server.metrics().total("sign_ins"), Some(1));
    assert!(quic.world.server.metrics().total("quic_address_changes").unwrap() >= 5);
}

#[test]
fn who_does_not_read_is_behind_while_others_go_on() {
    let quic = Quicly::new(|config| {
        config.queue_bytes_max = bytesize::ByteSize::kib(32);
        config.socket_send_bytes = bytesize::ByteSize::kib(16);
        config.write_deadline = Duration::from_secs(600);
    });
    let mut slow = quic.online_as(5, 5, Some(0));
    let mut other = quic.online(6);
    // More than its window, ours and the queue hold together.
    for _ in 0..60 {
        quic.world.control.push(5, vec![0; 50_000]);
        assert!(other.flush().is_empty());
    }
    eventually(|| quic.world.server.metrics().dropped("behind").unwrap() >= 1, "behind");
    // It reads on: what it was given is without a hole, and then it is told where it stands.
    let mut seq = 0;
    let latest = loop {
        let got = slow.packet().unwrap();
        if got.is(Command::Behind) {
            break gimbal_codec::body::Behind::decode(&got.content).unwrap().latest.get();
        }
        seq += 1;
        assert_eq!(got.message_seq(), seq);
    };
    assert!(seq < 60 && latest > seq, "{seq} {latest}");
    assert!(slow.flush().is_empty());
}

#[test]
fn a_reader_that_stops_for_good_is_closed_at_the_write_deadline() {
    let quic = Quicly::new(|config| {
        config.write_deadline = Duration::from_millis(500);
        config.linger_deadline = Duration::from_millis(200);
    });
    let client = quic.online_as(5, 5, Some(0));
    for _ in 0..60 {
        quic.world.control.push(5, vec![0; 50_000]);
    }
    quic.world.await_closed(CloseReason::WriteDeadline, 1);
    assert_eq!(client.socket.closed(), (4003, "write_deadline".to_owned()));
    quic.world.await_connections(0);
}

#[test]
fn a_drain_tells_clients_and_ends() {
    let quic = Quicly::new(|config| config.linger_deadline = Duration::from_secs(20));
    let mut client = quic.online(1);
    let (_idle, unused) = quic.connection();
    quic.world.await_connections(2);
    let told = std::thread::spawn(move || {
        let close = client.close_frame();
        (close, client.socket.closed())
    });
    let Quicly { world, .. } = quic;
    let drained = world.server.drain(Duration::ZERO);
    let (frame, close) = told.join().unwrap();
    assert_eq!((frame.0, close), (4100, (4100, "draining".to_owned())));
    assert!(frame.1 > 0, "with a time to come back");
    assert_eq!(closed(&unused), (4100, "draining".to_owned()));
    assert_eq!((drained.cut, drained.stuck), (0, 0));
}

#[test]
fn quic_is_off_without_a_certificate() {
    let mut config = crate::support::config();
    config.quic.listen = Some("127.0.0.1:0".parse().unwrap());
    let world = crate::support::World::new(&config);
    assert_eq!(world.server.quic_addr(), None);
    assert_eq!(world.server.hello().shards, 2);
}

#[test]
fn another_certificate_is_shown_once_it_is_in_place() {
    let mut quic = Quicly::new(usual);
    let mut older = quic.online(1);
    quic.certify_anew();
    let shows_it = || quic.try_connect(quic.client_config(Some(ALPN))).is_ok();
    eventually(shows_it, "another certificate");
    assert!(older.flush().is_empty(), "sessions go on");
    assert!(quic.online(2).flush().is_empty());
}
