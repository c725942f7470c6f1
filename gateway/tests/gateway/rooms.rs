//! Rooms, signals and pushes to all, over both shards.

use std::collections::HashSet;

use bytes::Bytes;
use gimbal_codec::body::{Message, Publish, Rooms, Signal};
use gimbal_codec::{Command, RoomId, UserId, code, frame};
use gimbal_gateway::config::Config;
use gimbal_rpc::link::Down;

use crate::support::{Client, World, config, eventually, room_frame};

/// So many clients that both shards have some: all on one shard would be one case in 2^31.
const MEMBERS: u64 = 32;

fn members(world: &World) -> Vec<Client> {
    let members = (1..=MEMBERS).map(|user| world.online(user)).collect();
    let shards: HashSet<_> =
        (1..=MEMBERS).map(|user| world.control.session(user, user).unwrap().0.shard()).collect();
    assert_eq!(shards.len(), 2);
    members
}

#[test]
fn each_member_gets_each_publish_once_in_order_and_leavers_none() {
    let world = World::new(&config());
    let mut members = members(&world);
    for member in &mut members {
        member.join(&[5, 6]);
    }
    let mut leaver = members.pop().unwrap();
    leaver.leave(&[5]);
    eventually(|| world.control.room_members(6) == MEMBERS as u32, "all are counted");
    for n in 0..200u64 {
        world.control.publish(5, &n.to_le_bytes());
    }
    for member in &mut members {
        for n in 0..200u64 {
            assert_eq!(member.packet().unwrap().message_content(), n.to_le_bytes());
        }
        assert!(member.flush().is_empty());
    }
    assert!(leaver.flush().is_empty());
    world.control.publish(6, b"six");
    assert_eq!(leaver.packet().unwrap().message_content(), b"six");
}

#[test]
fn a_burst_for_one_room_leaves_in_few_sends() {
    let world = World::new(&config());
    let mut member = world.online(1);
    member.join(&[5]);
    let items =
        (0..100).map(|n: u64| Down::Room { room: RoomId::new(5), frame: room_frame(5, &n.to_le_bytes()) });
    world.control.deliver(items.collect());
    for n in 0..100u64 {
        assert_eq!(member.packet().unwrap().message_content(), n.to_le_bytes());
    }
    // The sign-in, the join, and at most a few parts of the burst.
    eventually(|| world.server.metrics().total("room_frames_queued") == Some(100), "queued");
    let sends = || world.server.metrics().total("send_operations").unwrap();
    eventually(|| sends() >= 3, "published");
    assert!(sends() <= 20, "{} sends", sends());
}

#[test]
fn control_learns_when_a_room_gets_its_first_member_and_loses_its_last() {
    let world = World::new(&config());
    let mut member = world.online(1);
    member.join(&[5]);
    eventually(|| world.control.room_members(5) == 1, "joined");
    drop(member);
    eventually(|| world.control.room_members(5) == 0, "left");
}

#[test]
fn a_push_to_all_reaches_every_session_once() {
    let world = World::new(&config());
    let mut members = members(&world);
    let _fresh = world.connect();
    let frame = room_frame(0, b"all");
    world.control.deliver(vec![Down::All { frame: frame.clone(), per_second: 0 }]);
    world.control.deliver(vec![Down::All { frame, per_second: 200 }]);
    for member in &mut members {
        assert_eq!(member.packet().unwrap().message_content(), b"all");
        assert_eq!(member.packet().unwrap().message_content(), b"all");
        assert!(member.flush().is_empty());
    }
    eventually(|| world.server.metrics().total("push_frames_queued") == Some(2 * MEMBERS), "counted");
}

#[test]
fn a_signal_reaches_the_user_and_the_room_on_both_shards_but_not_its_sender() {
    let world = World::new(&config());
    let mut members = members(&world);
    for member in &mut members {
        member.join(&[5]);
    }
    let content = Bytes::from_static(b"typing");
    let to_room = Signal { room: RoomId::new(5), command: 3, content: &content, ..Signal::default() };
    let mut sender = members.remove(0);
    sender.send(Command::Signal, 1, &to_room);
    for member in &mut members {
        let got = member.packet().unwrap();
        let signal = Signal::decode(&got.content).unwrap();
        assert_eq!((signal.from_user.get(), signal.room.get(), signal.content), (1, 5, content.as_ref()));
    }
    assert!(sender.flush().is_empty());
    for (user, member) in (2..).zip(&mut members) {
        let to_user =
            Signal { to_user: UserId::new(user), command: 3, content: &content, ..Signal::default() };
        sender.send(Command::Signal, 1, &to_user);
        let got = member.packet().unwrap();
        assert!(got.is(Command::Signal));
        assert!(member.flush().is_empty());
    }
    let elsewhere = Signal { room: RoomId::new(9), command: 3, content: &content, ..Signal::default() };
    sender.send(Command::Signal, 1, &elsewhere);
    assert_eq!(sender.packet().unwrap().reply_code(), code::NOT_IN_ROOM);
}

#[test]
fn a_client_that_signals_without_end_is_refused_and_others_are_served() {
    let world = World::new(&Config { shards: 1, signals_per_second: 1, signals_burst: 5, ..config() });
    let (mut hostile, mut other) = (world.online(1), world.online(2));
    hostile.join(&[5]);
    other.join(&[5]);
    let flood: Vec<u8> = (0..100u64)
        .flat_map(|n| {
            let signal = Signal { room: RoomId::new(5), command: 3, ..Signal::default() };
            frame(Command::Signal, "", n, &signal).to_vec()
        })
        .collect();
    hostile.write(&flood);
    let refused = hostile.flush();
    assert!(refused.iter().all(|got| got.reply_code() == code::BUSY));
    // At most the burst and what a slow run of this test regains.
    let given = other.flush().len();
    assert_eq!((given + refused.len(), given >= 5), (100, true));
    assert!(!refused.is_empty());
}

#[test]
fn a_member_publishes_right_behind_its_join_and_all_members_get_it() {
    let world = World::new(&config());
    let mut members = members(&world);
    members[1..].iter_mut().for_each(|member| member.join(&[6]));
    for (index, room) in [(0, 5u64), (1, 6)] {
        let member = &mut members[index];
        // In one piece: control hears of the publish in the turn in which it hears of the room.
        let rooms = Rooms { rooms: vec![RoomId::new(room)] };
        let publish = Publish { room: RoomId::new(room), command: 9, content: b"hi" };
        let join = frame(Command::Join, "j", 1, &rooms);
        member.write(&[&join[..], &frame(Command::Publish, "p", 2, &publish)[..]].concat());
        assert!(member.packet().unwrap().is(Command::Join));
        let mut both = [member.packet().unwrap(), member.packet().unwrap()];
        both.sort_by_key(|got| got.is(Command::Publish));
        let [got, answer] = both;
        assert!(got.is(Command::Message), "{got:?}");
        let message = Message::decode(&got.content).unwrap();
        assert_eq!((message.room.get(), message.content, message.command), (room, b"hi".as_slice(), 9));
        assert_eq!(message.from_user, UserId::new(index as u64 + 1));
        assert_eq!((answer.request_id.as_str(), answer.seq, answer.reply_code()), ("p", 2, code::OK));
    }
    for member in &mut members[2..] {
        assert_eq!(member.packet().unwrap().message_content(), b"hi");
    }
}
