//! Attacks by those who do not read.

use std::time::Duration;

use gimbal_codec::{
    ClientMessageId, Command, RoomId, Seq,
    body::{Rooms, Send, Signal, Sync},
    limits::{CONTENT_BYTES_MAX, SYNC_LIMIT_MAX},
};

use super::attack::{Attack, Door, Hand, Next};
use crate::load::fleet::Member;

/// Their room; the honest are in another one.
const ROOM: u64 = 0x6465_6166;
/// Bytes the kernel is asked to keep for them.
const KEPT_BYTES: usize = 4096;
/// Keeps below what a session may send in a second, 1 MiB, so that nothing but the reader is at fault.
const SIGNAL_PERIOD: Duration = Duration::from_millis(64);
/// Between two questions: below 1,000 a second.
const ASK_PERIOD: Duration = Duration::from_millis(5);
/// What each question is answered with, at least, in bytes.
const ASK_BYTES: usize = 2048;
/// Messages that wait in an own mailbox.
const STORED: u64 = 8;

/// All join one room, read no more, and signal to it.
pub(super) struct Room;

impl Attack for Room {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        if hand.step == 0 {
            hand.sockets.keep_received(hand.index, KEPT_BYTES);
            hand.sockets.stall(hand.index, true);
            hand.say(Command::Join, &Rooms { rooms: vec![RoomId::new(ROOM)] });
        }
        if !hand.is_full() {
            let content = [0; CONTENT_BYTES_MAX];
            let signal =
                Signal { room: RoomId::new(ROOM), command: 1, content: &content, ..Signal::default() };
            hand.say(Command::Signal, &signal);
        }
        Next::Again(SIGNAL_PERIOD)
    }
}

/// Each has a mailbox with something in it, asks for pages of it, has its heartbeats echoed, and reads nothing of it.
pub(super) struct Answers {
    members: Vec<Member>,
}

impl Answers {
    pub(super) fn new(members: Vec<Member>) -> Self {
        Self { members }
    }
}

impl Attack for Answers {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        if hand.step == 0 {
            hand.sockets.keep_received(hand.index, KEPT_BYTES);
            hand.sockets.stall(hand.index, true);
            let to = self.members[hand.number as usize % self.members.len()].user;
            for id in 1..=STORED {
                // The same ids in every connection: stored once.
                let client_message_id = ClientMessageId::new(id);
                hand.say(
                    Command::Send,
                    &Send { client_message_id, to, command: 1, content: &[0; ASK_BYTES], ..Send::default() },
                );
            }
        }
        if !hand.is_full() {
            hand.say(Command::Sync, &Sync { after: Seq::new(0), limit: SYNC_LIMIT_MAX });
            hand.say(Command::Heartbeat, &Send { content: &[0; ASK_BYTES], ..Send::default() });
        }
        Next::Again(ASK_PERIOD)
    }
}
