//! Attacks that hold or waste places: they say little, slowly, or nothing, and never become what they claim to be.

use std::time::Duration;

use gimbal_codec::{DeviceId, UserId, limits::FRAME_BYTES_MAX};

use super::attack::{Attack, Door, Ground, Hand, Next, Transport};
use crate::{
    load::fleet::{Member, sign_in_frame},
    websocket::{Pipe, put_frame},
};

/// Between two bytes of a slow writer.
const SLOW: Duration = Duration::from_secs(1);
/// How long a QUIC handshake may take before its stream is reset.
const OPENING: Duration = Duration::from_millis(20);
/// How long a handshake is left to the server before the connection is reset.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// Connects and says nothing; over QUIC it begins handshakes and leaves them.
pub(super) struct HalfOpen {
    pub(super) transport: Transport,
}

impl Attack for HalfOpen {
    fn door(&self, _: u64) -> Door {
        Door::Bare
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        match (self.transport, hand.step) {
            // Nothing would tell that it is over.
            (Transport::Quic, 0) => Next::Again(SLOW),
            (Transport::Quic, _) => Next::Reset,
            _ => Next::Wait,
        }
    }
}

/// Begins as a client of its transport does, byte by byte.
pub(super) struct SlowWriters {
    first: Vec<u8>,
    /// It begins with them; else with the transport's own handshake.
    is_bare: bool,
}

impl SlowWriters {
    pub(super) fn new(ground: &Ground) -> Self {
        let nobody = Member { user: UserId::new(1), device: DeviceId::new(1), token: "0".repeat(64) };
        let first = match ground.transport {
            Transport::Tcp | Transport::Quic => sign_in_frame(&nobody, None).to_vec(),
            Transport::WebSocket => Pipe::new(&ground.address.to_string(), "/ws", 1).1,
            Transport::Tls | Transport::Wss => ground.hello.clone(),
        };
        Self { first, is_bare: ground.transport != Transport::Quic }
    }
}

impl Attack for SlowWriters {
    fn door(&self, _: u64) -> Door {
        if self.is_bare { Door::Bare } else { Door::Open }
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        let Some(&byte) = self.first.get(hand.step as usize) else { return Next::Wait };
        if self.is_bare {
            hand.say_bare(&[byte]);
        } else {
            hand.say_raw(&[byte]);
        }
        Next::Again(SLOW)
    }
}

/// Every other connection claims the largest frame before it has signed in; the others sign in, claim it, and send all but its last
/// byte.
pub(super) struct LargestFrames {
    most: Vec<u8>,
}

impl LargestFrames {
    pub(super) fn new(transport: Transport) -> Self {
        let mut most = Vec::new();
        if transport.is_websocket() {
            put_frame(&mut most, 0x82, &[0; FRAME_BYTES_MAX], [1, 2, 3, 4]);
        } else {
            most.extend([0x80, 0x80, 0x04]); // FRAME_BYTES_MAX as a varint
            most.resize(3 + FRAME_BYTES_MAX, 0);
        }
        most.pop();
        Self { most }
    }
}

impl Attack for LargestFrames {
    fn door(&self, number: u64) -> Door {
        if number.is_multiple_of(2) { Door::Open } else { Door::SignedIn(number as usize / 2) }
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        let bytes = if hand.number.is_multiple_of(2) { 64 } else { self.most.len() };
        hand.say_raw(&self.most[..bytes]);
        Next::Wait
    }
}

/// Connects and resets.
pub(super) struct Resets {
    pub(super) transport: Transport,
}

impl Attack for Resets {
    fn door(&self, number: u64) -> Door {
        let is_quic = self.transport == Transport::Quic;
        if number.is_multiple_of(2) && !is_quic { Door::Bare } else { Door::Open }
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        // The first step lets it connect.
        match (self.transport, hand.step) {
            (Transport::Quic, 0) => {
                hand.say_raw(&[0x7f]); // a stream that nothing was sent on is not known to the server
                Next::Again(OPENING)
            }
            (_, 0) => Next::Again(Duration::from_millis(2)),
            _ => Next::Reset,
        }
    }
}

/// Begins handshakes by turns: leaves it at that, goes on with what is no record, and begins with what is none. Over QUIC a handshake
/// begins by itself, and what is none is a datagram.
pub(super) struct Handshakes {
    hello: Vec<u8>,
}

impl Handshakes {
    pub(super) fn new(hello: Vec<u8>) -> Self {
        Self { hello }
    }
}

impl Attack for Handshakes {
    fn door(&self, _: u64) -> Door {
        Door::Bare
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        match (hand.number % 4, hand.step) {
            (3, 0) => hand.say_bare(&[b'?'; 64]),
            (_, 0) => hand.say_bare(&self.hello),
            (2, 1) => hand.say_bare(&[0xff; 64]),
            (_, 1) => {}
            _ => return Next::Reset,
        }
        Next::Again(HANDSHAKE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gimbal_codec::Decoder;

    #[test]
    fn the_largest_frame_lacks_a_byte_and_is_taken_with_it() {
        let mut most = LargestFrames::new(Transport::Tcp).most;
        let mut decoder = Decoder::new();
        assert!(decoder.feed(&most).next_frame(FRAME_BYTES_MAX).expect("it is allowed").is_none());
        most.push(0);
        let mut decoder = Decoder::new();
        let whole = decoder.feed(&most).next_frame(FRAME_BYTES_MAX).expect("it is allowed").map(<[u8]>::len);
        assert_eq!(whole, Some(FRAME_BYTES_MAX));
    }
}
