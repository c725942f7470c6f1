//! Bad input gets its close code, and harms nobody.

use gimbal_codec::{CloseReason, Command, code, limits};

use crate::support::{World, config, eventually};

#[test]
fn bad_bytes_before_sign_in_get_their_close_codes() {
    let world = World::new(&config());
    let mut neighbour = world.online(1);
    let cases: [(&[u8], CloseReason); 6] = [
        (&[0], CloseReason::EmptyFrame),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], CloseReason::BadLength),
        (&[0x81, 0x08], CloseReason::FrameTooLarge),
        (&[3, 0xff, 0xff, 0xff], CloseReason::BadPacket),
        (&[2, 0x10, 0x01, 2, 0x10, 0x01], CloseReason::UnexpectedCommand),
        (&[6, 0x10, 0x01, 0x1a, 2, 0x0a, 9], CloseReason::BadBody),
    ];
    for (bytes, reason) in cases {
        let mut client = world.connect();
        client.write(bytes);
        assert_eq!(client.close_code(), reason.code(), "{bytes:?}");
        world.await_closed(reason, 1);
    }
    assert!(neighbour.flush().is_empty());
}

#[test]
fn the_close_is_read_even_by_a_peer_that_has_shut_its_side_down() {
    let world = World::new(&config());
    let mut client = world.connect();
    client.write(&[0]);
    client.shutdown_write();
    assert_eq!(client.close_code(), CloseReason::EmptyFrame.code());
}

#[test]
fn commands_before_sign_in_are_answered_and_then_too_many() {
    let world = World::new(&config());
    let mut client = world.connect();
    for seq in 0..u64::from(limits::FRESH_FRAMES_MAX) {
        client.send(Command::Heartbeat, seq, &());
        assert_eq!(client.packet().unwrap().reply_code(), code::NOT_SIGNED_IN);
    }
    client.send(Command::Heartbeat, 99, &());
    assert_eq!(client.close_code(), CloseReason::TooManyFrames.code());
}

#[test]
fn what_makes_no_sense_online_is_closed() {
    let world = World::new(&config());
    for (number, reason) in [
        (Command::SignIn.number(), CloseReason::UnexpectedCommand),
        (Command::Close.number(), CloseReason::UnexpectedCommand),
        (9999, CloseReason::UnknownCommand),
        (-1, CloseReason::UnknownCommand),
    ] {
        let mut client = world.online(1);
        client.write(&gimbal_codec::frame(number, "", 0, &()));
        assert_eq!(client.close_code(), reason.code(), "{number}");
    }
    let mut client = world.online(1);
    client.write(&[0x81, 0x80, 0x04]);
    assert_eq!(client.close_code(), CloseReason::FrameTooLarge.code());
}

#[test]
fn a_flood_after_a_bad_frame_is_discarded() {
    let world = World::new(&config());
    let mut client = world.connect();
    client.write(&[0]);
    let flood = vec![1; 64 * 1024];
    client.write(&flood);
    assert_eq!(client.close_code(), CloseReason::EmptyFrame.code());
    drop(client);
    world.await_connections(0);
}

#[test]
fn memory_of_frames_that_do_not_end_is_counted_and_given_back() {
    let world = World::new(&config());
    let mut client = world.online(1);
    // The prefix of a packet of 60,000 bytes, and half of it.
    client.write(&[0xe0, 0xd4, 0x03]);
    client.write(&vec![0; 30_000]);
    eventually(|| (30_000..=60_003).contains(&world.server.metrics().partial_frame_bytes()), "counted");
    drop(client);
    eventually(|| world.server.metrics().partial_frame_bytes() == 0, "given back");
}
