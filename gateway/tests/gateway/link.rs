//! The link: full inboxes, a full uplink, lost items.

use std::sync::atomic::Ordering;

use gimbal_codec::body::{Reply, Sync, SyncPage};
use gimbal_codec::{CloseReason, Command, RoomId, Seq, code, frame};
use gimbal_gateway::config::Config;
use gimbal_rpc::link::{Down, Up};

use crate::support::{Client, TOKEN, World, config, eventually, room_frame};

#[test]
fn a_full_inbox_leads_to_an_announcement_of_every_session() {
    let world = World::new(&Config { inbox_items_max: 64, shards: 1, ..config() });
    let mut clients: Vec<_> = (1..=3).map(|user| world.online_as(user, user, Some(0))).collect();
    // One call: the shard cannot take items between.
    let frame = room_frame(9, b"nobody is there");
    let items = (0..100_000).map(|_| Down::Room { room: RoomId::new(9), frame: frame.clone() });
    world.control.deliver(items.collect());
    world.await_dropped("inbox_full", 1);
    eventually(|| world.control.count(|up| matches!(up, Up::Announce { .. })) >= 3, "announced");
    for (user, client) in (1..).zip(&mut clients) {
        eventually(
            || world.control.session(user, user).is_some_and(|(_, attach)| attach.get() > 3),
            "attached anew",
        );
        world.control.push(user, "after");
        assert_eq!(next_message(client), (1, b"after".to_vec()));
    }
}

/// The message after an empty mailbox, delivered or fetched: items of one batch may overflow the inbox twice, and a session
/// announced for the second time is told that it is behind.
fn next_message(client: &mut Client) -> (u64, Vec<u8>) {
    loop {
        let got = client.packet().unwrap();
        if got.is(Command::Message) {
            return (got.message_seq(), got.message_content());
        } else if got.is(Command::Behind) {
            client.send(Command::Sync, 1, &Sync { after: Seq::new(0), limit: 0 });
        } else if got.is(Command::Sync) && got.reply_code() == code::OK {
            let reply = Reply::decode(&got.content).unwrap();
            let page = SyncPage::decode(reply.data).unwrap();
            let message = page.messages.first().expect("the message that the session is behind of");
            return (message.seq.get(), message.content.to_vec());
        }
    }
}

#[test]
fn a_full_uplink_refuses_calls_and_keeps_ends() {
    let world = World::new(&config());
    let (mut alice, bob) = (world.online_as(1, 1, Some(0)), world.online_as(2, 2, Some(0)));
    world.control.is_full.store(true, Ordering::Relaxed);
    let send = gimbal_codec::body::Send {
        client_message_id: gimbal_codec::ClientMessageId::new(1),
        to: gimbal_codec::UserId::new(2),
        command: 5,
        content: b"hello",
        ..Default::default()
    };
    alice.send(Command::Send, 9, &send);
    assert_eq!(alice.packet().unwrap().reply_code(), code::BUSY);
    let mut carol = world.connect();
    carol.sign_in(3, 3, TOKEN, None);
    assert_eq!(carol.packet().unwrap().reply_code(), code::BUSY);
    let (close, retry_after_ms) = carol.close_frame();
    assert_eq!(close, CloseReason::Overloaded.code());
    assert!(retry_after_ms >= 1000);
    drop((bob, carol));
    world.await_connections(1);
    world.control.is_full.store(false, Ordering::Relaxed);
    eventually(|| world.control.online_count() == 1, "bob's end arrives late");
}

#[test]
fn a_flood_of_calls_is_refused_beyond_a_bound_and_others_are_served() {
    let world = World::new(&Config { shards: 1, ..config() });
    let (mut hostile, mut other) = (world.online(1), world.online(2));
    world.control.is_silent.store(true, Ordering::Relaxed);
    let acks: Vec<u8> = (0..600).flat_map(|seq| frame(Command::Ack, "", seq, &()).to_vec()).collect();
    hostile.write(&acks);
    let refused = hostile.flush();
    assert_eq!(refused.len(), 600 - 256);
    assert!(refused.iter().all(|got| got.is(Command::Ack) && got.reply_code() == code::BUSY));
    assert_eq!(world.control.count(|up| matches!(up, Up::Ack { .. })), 256);
    world.control.is_silent.store(false, Ordering::Relaxed);
    other.send(Command::Ack, 7, &());
    assert_eq!(other.packet().unwrap().reply_code(), code::OK);
}
