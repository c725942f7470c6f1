//! What one client, one address or a crowd may take, and that others go on.

use std::time::Duration;

use bytes::Bytes;
use gimbal_codec::body::{Rooms, Signal};
use gimbal_codec::{CloseReason, Command, RoomId, code, frame};
use gimbal_gateway::config::{Config, Prefix};
use gimbal_rpc::link::Up;

use crate::support::{Client, TOKEN, World, config, eventually};

/// Two shards, on which loopback is like any other address.
fn counted(per_address: u32, per_prefix: u32) -> Config {
    Config {
        connections_per_address: per_address,
        connections_per_prefix: per_prefix,
        connections_unlimited_from: Vec::new(),
        ..config()
    }
}

#[test]
fn connections_of_one_address_and_of_one_range_are_bounded_over_all_shards() {
    for (config, what) in
        [(counted(5, 0), "connection_per_address"), (counted(0, 5), "connection_per_prefix")]
    {
        let world = World::new(&config);
        let mut clients: Vec<_> = (1..=5).map(|user| world.online(user)).collect();
        assert_eq!(world.connect().packet(), None, "closed at once");
        world.await_dropped(what, 1);
        clients.truncate(3);
        world.await_connections(3);
        for user in 6..=7 {
            clients.push(world.online(user));
        }
        assert_eq!(world.connect().packet(), None);
        assert!(clients[0].flush().is_empty());
    }
    let world = World::new(&Config { connections_per_address: 1, ..config() });
    let _clients: Vec<_> = (1..=5).map(|user| world.online(user)).collect();
}

/// The header that a balancer writes for `client` to 192.0.2.1, version 2.
fn header(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(client.into_iter().chain([192, 0, 2, 1]));
    bytes.extend(port.to_be_bytes().into_iter().chain([1, 187]));
    bytes
}

fn signed_in(client: &mut Client, user: u64) -> bool {
    client.sign_in(user, user, TOKEN, None);
    client.packet().is_some_and(|got| got.is(Command::SignIn) && got.reply_code() == code::OK)
}

#[test]
fn the_address_that_a_balancer_names_is_what_counts_and_what_control_is_told() {
    let balancers: Vec<Prefix> = vec!["127.0.0.0/8".parse().unwrap()];
    let world = World::new(&Config { proxy_protocol_from: balancers, ..counted(1, 0) });
    let mut first = world.connect();
    for piece in header([198, 51, 100, 7], 4711).chunks(5) {
        first.write(piece);
    }
    assert!(signed_in(&mut first, 1));
    let is_named = |up: &Up| matches!(up, Up::SignIn { peer, .. } if peer == "198.51.100.7:4711");
    assert_eq!(world.control.count(is_named), 1);

    let mut same = world.connect();
    same.write(b"PROXY TCP4 198.51.100.7 192.0.2.1 4712 443\r\n");
    assert_eq!(same.packet(), None);
    world.await_dropped("connection_per_address", 1);

    let mut other = world.connect();
    other.write(b"PROXY TCP6 2001:db8::7 2001:db8::1 4713 443\r\n");
    assert!(signed_in(&mut other, 2));
    let mut own = world.connect();
    own.write(b"PROXY UNKNOWN\r\n");
    assert!(signed_in(&mut own, 3), "the balancer speaks for itself");

    let mut bare = world.connect();
    bare.sign_in(4, 4, TOKEN, None);
    assert_eq!(bare.packet(), None, "without a header");
    world.await_dropped("proxy_header_bad", 1);
    drop(first);
    world.await_connections(2);
    let mut again = world.connect();
    again.write(&header([198, 51, 100, 7], 1));
    assert!(signed_in(&mut again, 5));
}

#[test]
fn a_header_of_a_stranger_is_no_header() {
    let balancers: Vec<Prefix> = vec!["192.0.2.0/24".parse().unwrap()];
    let world = World::new(&Config { proxy_protocol_from: balancers, ..config() });
    let mut liar = world.connect();
    // Its first byte is the length of a frame.
    liar.write(b"PROXY TCP4 198.51.100.7 192.0.2.1 4712 443\r\n");
    liar.write(&[0xff; 80]);
    assert_eq!(liar.close_code(), CloseReason::BadPacket.code());
    let mut honest = world.online(1);
    assert!(honest.flush().is_empty());
}

#[test]
fn sign_ins_beyond_the_budget_are_sent_away_with_the_time_to_come_back() {
    let world = World::new(&Config { shards: 1, sign_ins_per_second: 1, ..config() });
    let mut told = Vec::new();
    for user in 1..=20 {
        let mut client = world.connect();
        client.sign_in(user, user, TOKEN, None);
        let answer = client.packet().unwrap();
        if answer.reply_code() == code::OK {
            continue;
        }
        assert_eq!(answer.reply_code(), code::BUSY);
        let (close, retry_after_ms) = client.close_frame();
        assert_eq!(close, CloseReason::Overloaded.code());
        told.push(retry_after_ms);
    }
    // A slow run of this test regains some.
    assert!(!told.is_empty() && told.iter().all(|ms| (1..=60_000).contains(ms)), "{told:?}");
    world.await_dropped("sign_in_over_rate", told.len() as u64);
    assert_eq!(world.control.count(|up| matches!(up, Up::SignIn { .. })), 20 - told.len());
}

#[test]
fn a_client_that_floods_is_closed_and_others_do_not_notice() {
    for config in [
        Config { frames_per_second: 5, ..config() },
        Config { bytes_per_second: bytesize::ByteSize::kib(1), ..config() },
    ] {
        let world = World::new(&config);
        let (mut hostile, mut other) = (world.online(1), world.online(2));
        let join = frame(Command::Join, "r", 1, &Rooms { rooms: vec![RoomId::new(5)] });
        // Three bursts would be the end of it; a slow run regains some.
        let flood = Bytes::from(join.repeat(4000));
        let mut answers = Vec::new();
        hostile.write_what_it_takes(&flood);
        let close = loop {
            match hostile.packet() {
                Some(got) if got.is(Command::Close) => break got,
                Some(got) => answers.push(got.reply_code()),
                None => panic!("no close frame after {} answers", answers.len()),
            }
        };
        let close = gimbal_codec::body::Close::decode(&close.content).unwrap().code;
        assert_eq!(close, CloseReason::OverRate.code());
        assert!(answers.contains(&code::OK) && answers.contains(&code::BUSY));
        world.await_dropped("frame_throttled", 1);
        world.await_dropped("frame_shed", 1);
        other.send(Command::Signal, 1, &Signal { room: RoomId::new(5), command: 1, ..Signal::default() });
        assert_eq!(other.packet().unwrap().reply_code(), code::NOT_IN_ROOM);
    }
}

#[test]
fn a_device_that_was_closed_for_its_rate_comes_back_when_it_is_made_up_for() {
    // Three bursts of four seconds are the end, and what they take to be made up for.
    let world = World::new(&Config { bytes_per_second: bytesize::ByteSize::kib(1), ..config() });
    let mut hostile = world.online(1);
    let join = frame(Command::Join, "r", 1, &Rooms { rooms: vec![RoomId::new(5)] });
    hostile.write_what_it_takes(&Bytes::from(join.repeat(4000)));
    while !hostile.packet().expect("a close frame").is(Command::Close) {}
    let asked = world.control.count(|up| matches!(up, Up::SignIn { .. }));
    let mut again = world.connect();
    again.sign_in(1, 1, TOKEN, None);
    assert_eq!(again.packet().unwrap().reply_code(), code::BUSY);
    let (close, retry_after_ms) = again.close_frame();
    assert_eq!(close, CloseReason::Overloaded.code());
    assert!((1..=12_000).contains(&retry_after_ms), "{retry_after_ms}");
    world.await_dropped("sign_in_in_debt", 1);
    assert_eq!(world.control.count(|up| matches!(up, Up::SignIn { .. })), asked, "control is not asked");
    let mut other = world.online(2);
    assert!(other.flush().is_empty());
}

#[test]
fn limits_change_while_sessions_go_on() {
    let world = World::new(&Config { frames_per_second: 0, ..counted(0, 0) });
    let mut first = world.online(1);
    let wrong = Config { frames_per_second: u32::MAX, ..counted(1, 0) };
    let refused = world.server.reload(&wrong).unwrap_err().to_string();
    assert!(refused.starts_with("frames_per_second is"), "{refused}");
    let mut second = world.online(2);
    world.server.reload(&Config { frames_per_second: 1, rooms_per_session_max: 1, ..counted(1, 0) }).unwrap();
    let third = world.online(3);
    assert_eq!(world.connect().packet(), None, "those who were there before are not counted");
    // A shard takes the rest over at its next tick.
    eventually(
        || {
            second.send(Command::Join, 1, &Rooms { rooms: vec![RoomId::new(1), RoomId::new(2)] });
            matches!(second.packet().unwrap().reply_code(), code::TOO_MANY_ROOMS | code::BUSY)
        },
        "the new limit of rooms",
    );
    assert!(first.flush().is_empty());
    drop(third);
}

#[test]
fn memory_is_bounded_and_what_may_be_lost_goes_first() {
    let world = World::new(&Config {
        shards: 1,
        memory_max: bytesize::ByteSize::mib(64),
        queue_bytes_max: bytesize::ByteSize::mib(64),
        ..config()
    });
    let (_stalled, mut member) = (world.online(1), world.online(2));
    member.join(&[7]);
    eventually(|| world.control.room_members(7) == 1, "the room is known");
    world.control.publish(7, b"before");
    assert_eq!(member.packet().unwrap().message_content(), b"before");
    let content = Bytes::from(vec![0; 60 << 10]);
    for _ in 0..920 {
        world.control.push(1, content.clone());
    }
    world.control.publish(7, &[0; 8 << 10]);
    world.await_dropped("shed_over_memory", 1);
    world.control.publish(7, b"small");
    assert_eq!(member.packet().unwrap().message_content(), b"small", "who reads is given what is small");
    world.control.push(2, "kept");
    assert_eq!(member.packet().unwrap().message_content(), b"kept", "what is stored is given");
    // A second one fills the rest.
    let _second = world.online(3);
    for _ in 0..920 {
        world.control.push(3, content.clone());
    }
    eventually(|| world.server.metrics().total("connections_accepted").unwrap() >= 3, "accepted");
    eventually(
        || {
            let refused = world.connect().packet().is_none();
            refused && world.server.metrics().dropped("connection_over_memory").unwrap() > 0
        },
        "new connections are refused",
    );
    assert!(member.flush().is_empty());
}

#[test]
fn a_frame_that_does_not_end_gets_no_memory_when_there_is_none() {
    let world = World::new(&Config {
        shards: 1,
        memory_max: bytesize::ByteSize::mib(64),
        queue_bytes_max: bytesize::ByteSize::mib(64),
        // Those who do not read are to stay.
        write_deadline: Duration::from_secs(3600),
        ..config()
    });
    let (_stalled, mut hostile, mut other) = (world.online(1), world.online(2), world.online(3));
    // The longest frame: its beginning is kept while there is room.
    hostile.write(&[0x80, 0x80, 0x04, 0, 0]);
    eventually(|| world.server.metrics().partial_frame_bytes() > 0, "the beginning is kept");
    let content = Bytes::from(vec![0; 60 << 10]);
    let _second = world.online(4);
    // One after the other: both would not fit into the shard's inbox.
    for (user, held_mib) in [(1, 50), (4, 64)] {
        (0..920).for_each(|_| world.control.push(user, content.clone()));
        eventually(|| world.server.metrics().held_bytes() >= held_mib << 20, "it is taken");
    }
    hostile.write_what_it_takes(&[0; 60 << 10]);
    let close = hostile.close_code();
    assert_eq!(close, CloseReason::Overloaded.code());
    world.await_dropped("partial_over_memory", 1);
    eventually(|| world.server.metrics().partial_frame_bytes() == 0, "and given back");
    other.send(Command::Heartbeat, 1, &());
    assert!(other.packet().unwrap().is(Command::Heartbeat), "whole frames are taken");
}

#[test]
fn frames_that_do_not_end_take_half_of_the_memory_at_most_and_room_messages_go_on() {
    let memory_max = bytesize::ByteSize::mib(64);
    let idle = Duration::from_secs(3600);
    let world = World::new(&Config { shards: 1, memory_max, idle_deadline: idle, ..config() });
    let mut member = world.online(1);
    member.join(&[7]);
    eventually(|| world.control.room_members(7) == 1, "the room is known");
    // The longest frame without its last byte; 512 of them are half of it.
    let mut unended = vec![0x80, 0x80, 0x04];
    unended.resize(3 + (64 << 10) - 1, 0);
    let mut hostile: Vec<_> = (2..=540).map(|user| world.online(user)).collect();
    hostile.iter_mut().for_each(|client| client.write_what_it_takes(&unended));
    world.await_dropped("partial_over_memory", 1);
    world.await_closed(CloseReason::Overloaded, 1);
    assert!(world.server.metrics().partial_frame_bytes() <= (32 << 20) + (128 << 10));
    world.control.publish(7, b"goes on");
    assert_eq!(member.packet().unwrap().message_content(), b"goes on");
    assert_eq!(world.server.metrics().dropped("shed_over_memory"), Some(0));
    drop(hostile);
    eventually(|| world.server.metrics().partial_frame_bytes() == 0, "all of it is given back");
}

#[test]
fn what_waits_for_all_members_of_a_room_is_memory_once() {
    const MEMBERS: u64 = 60;
    const FRAMES: u64 = 40;
    let world = World::new(&Config {
        shards: 1,
        memory_max: bytesize::ByteSize::mib(64),
        queue_bytes_max: bytesize::ByteSize::mib(16),
        write_deadline: Duration::from_secs(3600),
        ..config()
    });
    let mut members: Vec<_> = (1..=MEMBERS).map(|user| world.online(user)).collect();
    members.iter_mut().for_each(|member| member.join(&[7]));
    eventually(|| world.control.room_members(7) == MEMBERS as u32, "the room is known");
    // Nobody reads; 2.3 MiB for each of them, 140 MiB if it were copied.
    (0..FRAMES).for_each(|_| world.control.publish(7, &[0; 60 << 10]));
    let metrics = world.server.metrics();
    eventually(|| metrics.total("room_frames_queued") == Some(MEMBERS * FRAMES), "all of it is taken");
    eventually(|| metrics.held_bytes() > 1 << 20, "and counted");
    assert!(metrics.held_bytes() < 8 << 20, "{}", metrics.held_bytes());
    assert_eq!(metrics.dropped("shed_over_memory"), Some(0));
    let mut newcomer = world.online(MEMBERS + 1);
    newcomer.send(Command::Heartbeat, 1, &());
    assert!(newcomer.packet().unwrap().is(Command::Heartbeat), "there is room for more");
    for _ in 0..FRAMES {
        assert_eq!(members[0].packet().unwrap().message_content().len(), 60 << 10);
    }
    drop(members);
    eventually(|| metrics.held_bytes() < 256 << 10, "all of it is given back");
}
