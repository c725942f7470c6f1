//! Attacks by too much of what a client may do.

use std::time::Duration;

use gimbal_codec::{ClientMessageId, Command, body::Send, limits::FRAME_BYTES_MAX};

use super::attack::{Attack, Door, Hand, Next, Transport};
use crate::{load::fleet::Member, websocket::put_frame};

/// Between two bursts of one connection; the socket bounds what is taken.
const PERIOD: Duration = Duration::from_millis(2);
/// Things in one burst.
const BURST: u64 = 256;
/// Key updates in one burst: each costs us as much as the server.
const KEYS: u64 = 64;
/// Mask of all fragments and pings: any will do.
const MASK: [u8; 4] = [7, 9, 3, 1];

const CONTINUATION: u8 = 0x00;
const BINARY: u8 = 0x02;
const PING: u8 = 0x89;

/// Heartbeats, or WebSocket pings.
pub(super) struct Pings {
    pub(super) transport: Transport,
}

impl Attack for Pings {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        if !hand.is_full() {
            if self.transport.is_websocket() {
                let mut pings = Vec::new();
                (0..BURST).for_each(|_| put_frame(&mut pings, PING, b"are you there?", MASK));
                hand.say_raw(&pings);
            } else {
                (0..BURST).for_each(|_| hand.say(Command::Heartbeat, &()));
            }
        }
        Next::Again(PERIOD)
    }
}

/// Durable sends to oneself.
pub(super) struct Frames {
    pub(super) members: Vec<Member>,
}

impl Attack for Frames {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        if !hand.is_full() {
            let to = self.members[hand.number as usize % self.members.len()].user;
            for id in 1..=BURST {
                // Rising over all connections of one device.
                let client_message_id = ClientMessageId::new(hand.number << 32 | hand.step << 8 | id);
                hand.say(
                    Command::Send,
                    &Send { client_message_id, to, command: 1, content: b"once more", ..Send::default() },
                );
            }
        }
        Next::Again(PERIOD)
    }
}

/// Fragments of messages that do not end: empty ones on every other connection.
pub(super) struct Fragments;

impl Attack for Fragments {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        if !hand.is_full() {
            let mut bytes = Vec::new();
            if hand.step == 0 {
                put_frame(&mut bytes, BINARY, b"", MASK);
            }
            let payload: &[u8] = if hand.number.is_multiple_of(2) { &[] } else { &[0; 512] };
            (0..BURST).for_each(|_| put_frame(&mut bytes, CONTINUATION, payload, MASK));
            hand.say_raw(&bytes);
        }
        Next::Again(PERIOD)
    }
}

/// New keys without end: alone, and on every other connection between single bytes of a frame, which make each of them look harmless.
pub(super) struct KeyUpdates {
    pub(super) transport: Transport,
}

impl Attack for KeyUpdates {
    fn door(&self, number: u64) -> Door {
        Door::SignedIn(number as usize)
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        let with_bytes = !hand.number.is_multiple_of(2);
        if hand.step == 0 && with_bytes {
            let mut frame = Vec::new();
            if self.transport.is_websocket() {
                put_frame(&mut frame, 0x80 | BINARY, &[0; FRAME_BYTES_MAX], MASK);
                frame.truncate(16);
            } else {
                frame.extend([0x80, 0x80, 0x04]);
            }
            hand.say_raw(&frame);
        }
        for _ in 0..if hand.is_full() { 0 } else { KEYS } {
            hand.sockets.refresh_keys(hand.index);
            if with_bytes {
                hand.say_raw(&[0]);
            }
        }
        Next::Again(PERIOD)
    }
}
