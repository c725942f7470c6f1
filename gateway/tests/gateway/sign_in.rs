//! Coming online, being refused, being replaced.

use std::sync::atomic::Ordering;

use gimbal_codec::body::{Reply, SignInResult};
use gimbal_codec::{CloseReason, Command, code};
use gimbal_rpc::link::Up;

use crate::support::{Client, TOKEN, World, config, eventually};

#[test]
fn a_client_without_a_cursor_gets_an_empty_answer_as_from_gim() {
    let world = World::new(&config());
    let mut client = world.connect();
    client.sign_in(7, 8, TOKEN, None);
    let answer = client.packet().unwrap();
    assert!(answer.is(Command::SignIn) && answer.content.is_empty());
    assert_eq!((answer.request_id.as_str(), answer.seq), ("r", 1));
}

#[test]
fn a_client_with_a_cursor_learns_where_its_mailbox_ends() {
    let world = World::new(&config());
    world.control.push(7, "missed");
    let mut client = world.connect();
    client.sign_in(7, 8, TOKEN, Some(0));
    let answer = client.packet().unwrap();
    let reply = Reply::decode(&answer.content).unwrap();
    let result = SignInResult::decode(reply.data).unwrap();
    assert_eq!((reply.code, result.latest.get()), (code::OK, 1));
    assert!(client.packet().unwrap().is(Command::Behind));
}

#[test]
fn a_refused_sign_in_is_answered_and_then_closed() {
    let world = World::new(&config());
    let mut client = world.connect();
    client.sign_in(7, 8, "wrong", None);
    let answer = client.packet().unwrap();
    assert!(answer.is(Command::SignIn) && answer.reply_code() == code::NOT_SIGNED_IN);
    assert_eq!(client.close_code(), CloseReason::SignInFailed.code());
    drop(client);
    world.await_connections(0);
}

#[test]
fn frames_split_at_every_byte_are_understood() {
    let world = World::new(&config());
    let mut client = world.connect();
    let sign_in = gimbal_codec::body::SignIn {
        user: gimbal_codec::UserId::new(7),
        device: gimbal_codec::DeviceId::new(8),
        token: TOKEN,
        cursor: None,
    };
    for byte in gimbal_codec::frame(Command::SignIn, "r", 1, &sign_in) {
        client.write(&[byte]);
    }
    assert!(client.packet().unwrap().is(Command::SignIn));
    let heartbeats: Vec<u8> =
        (0..100).flat_map(|seq| gimbal_codec::frame(Command::Heartbeat, "", seq, &())).collect();
    for part in heartbeats.chunks(7) {
        client.write(part);
    }
    for seq in 0..100 {
        assert_eq!(client.packet().unwrap().seq, seq);
    }
}

#[test]
fn a_newer_session_of_a_device_ends_the_older_and_stays() {
    let world = World::new(&config());
    let mut older = world.online_as(7, 8, None);
    let mut newer = world.online_as(7, 8, None);
    assert_eq!(older.close_code(), CloseReason::Takeover.code());
    drop(older);
    world.await_connections(1);
    world.control.push(7, "to the newer");
    assert_eq!(newer.packet().unwrap().message_content(), b"to the newer");
    assert_eq!(world.control.online_count(), 1);
}

#[test]
fn a_vanished_client_is_detached() {
    let world = World::new(&config());
    let client = world.online(7);
    drop(client);
    eventually(|| world.control.online_count() == 0, "detached");
    world.await_connections(0);
}

#[test]
fn a_sign_in_that_outlives_its_connection_is_taken_back() {
    let world = World::new(&config());
    world.control.is_silent.store(true, Ordering::Relaxed);
    let mut client = world.connect();
    client.sign_in(7, 8, TOKEN, None);
    let asked = || world.control.count(|up| matches!(up, Up::SignIn { .. })) == 1;
    eventually(asked, "asked");
    drop(client);
    world.await_connections(0);
    world.control.answer_sign_ins();
    // At once by the client's own word, and then by whom control took it for.
    let taken_back =
        |up: &Up| matches!(up, Up::Detach { caller } if caller.attach != gimbal_codec::Attach::default());
    eventually(|| world.control.count(taken_back) == 1, "taken back");
    assert_eq!(world.control.count(|up| matches!(up, Up::Detach { .. })), 2);
}

#[test]
fn a_message_goes_from_one_session_to_another() {
    let world = World::new(&config());
    let (mut alice, mut bob) = (world.online_as(1, 1, Some(0)), world.online_as(2, 2, Some(0)));
    let send = gimbal_codec::body::Send {
        client_message_id: gimbal_codec::ClientMessageId::new(1),
        to: gimbal_codec::UserId::new(2),
        command: 5,
        content: b"hello",
        ..Default::default()
    };
    alice.send(Command::Send, 9, &send);
    let answer = alice.packet().unwrap();
    assert!(answer.is(Command::Send) && answer.seq == 9 && answer.reply_code() == code::OK);
    let message = bob.packet().unwrap();
    assert_eq!((message.message_seq(), message.message_content()), (1, b"hello".to_vec()));
}

#[test]
fn heartbeats_come_back_as_they_were_sent() {
    let world = World::new(&config());
    let mut client: Client = world.online(7);
    client.send(Command::Heartbeat, 77, b"anything".as_slice());
    let echo = client.packet().unwrap();
    assert_eq!(
        (echo.seq, echo.content.as_slice(), echo.request_id.as_str()),
        (77, b"anything".as_slice(), "r")
    );
}
