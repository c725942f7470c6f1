//! Clients that do not read.

use gimbal_codec::body::{Behind, Reply, Sync, SyncPage};
use gimbal_codec::{CloseReason, Command, Seq};

use crate::support::{World, config, eventually};

/// Together far more than the socket buffers of both sides and the queue hold.
const COUNT: u64 = 1500;

fn content(n: u64) -> Vec<u8> {
    let mut content = vec![0; 16 * 1024];
    content[..8].copy_from_slice(&n.to_le_bytes());
    content
}

#[test]
fn a_slow_reader_without_a_cursor_is_closed_and_others_receive() {
    let world = World::new(&config());
    let mut slow = world.online_as(1, 1, None);
    let mut quick = world.online_as(2, 2, None);
    for n in 0..COUNT {
        world.control.push(1, content(n));
    }
    world.control.push(2, "undisturbed");
    assert_eq!(quick.packet().unwrap().message_content(), b"undisturbed");
    world.await_closed(CloseReason::TooSlow, 1);
    let mut next = 1;
    loop {
        let got = slow.packet().unwrap();
        if got.is(Command::Close) {
            break;
        }
        assert_eq!(got.message_seq(), next);
        next += 1;
    }
    eventually(|| world.control.online_count() == 1, "the slow one is detached");
}

#[test]
fn a_slow_reader_with_a_cursor_is_told_and_catches_up_without_a_gap() {
    let world = World::new(&config());
    let mut slow = world.online_as(1, 1, Some(0));
    let mut quick = world.online_as(2, 2, Some(0));
    for n in 1..=COUNT {
        world.control.push(1, content(n));
    }
    world.control.push(2, "undisturbed");
    assert_eq!(quick.packet().unwrap().message_content(), b"undisturbed");
    let (mut have, mut latest) = (0, 0);
    while latest < COUNT || have < latest {
        let got = slow.packet().unwrap();
        if got.is(Command::Message) {
            assert_eq!(got.message_seq(), have + 1);
            have += 1;
        } else if got.is(Command::Behind) {
            latest = Behind::decode(&got.content).unwrap().latest.get();
            slow.send(Command::Sync, 1, &Sync { after: Seq::new(have), limit: 0 });
        } else if got.is(Command::Sync) && got.reply_code() == 0 {
            let reply = Reply::decode(&got.content).unwrap();
            let page = SyncPage::decode(reply.data).unwrap();
            for message in &page.messages {
                assert_eq!(message.seq.get(), have + 1);
                assert_eq!(message.content, content(have + 1));
                have += 1;
            }
        }
    }
    world.control.push(1, content(COUNT + 1));
    let live = slow.packet().unwrap();
    assert!(live.is(Command::Message) && live.message_seq() == COUNT + 1);
}

#[test]
fn room_frames_of_a_slow_reader_are_shed_and_its_neighbours_get_all() {
    let world = World::new(&config());
    let mut slow = world.online(1);
    let mut quick = world.online(2);
    slow.join(&[5]);
    quick.join(&[5]);
    for n in 0..COUNT {
        world.control.publish(5, &content(n));
        assert_eq!(quick.packet().unwrap().message_content(), content(n));
    }
    world.await_dropped("room_frame_shed", 1);
    let (mut next, mut count) = (0, 0);
    // The quick one's shard may be ahead of the slow one's.
    let is_complete = || {
        for got in slow.flush() {
            let n = u64::from_le_bytes(got.message_content()[..8].try_into().unwrap());
            assert!(n >= next, "{n} after {next}");
            next = n + 1;
            count += 1;
        }
        count + world.server.metrics().dropped("room_frame_shed").unwrap() == COUNT
    };
    eventually(is_complete, "every frame is given or counted as shed");
}
