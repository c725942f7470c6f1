//! Seeded inputs of the benchmarks beside this folder, and the gateway's private parts.

#![forbid(unsafe_code)]

pub mod parts;

/// Compiled from the gateway's source; its `crate::` paths are met by the imports and the stand-in below.
#[path = "../../gateway/src"]
#[allow(dead_code, unused_imports, reason = "only what is measured is used")]
mod gateway {
    pub(crate) mod fanout;
    pub(crate) mod send_queue;
    pub(crate) mod session;
    pub(crate) mod transport {
        pub(crate) mod form;
    }
    pub(crate) mod shard {
        pub(crate) mod inbox;
        pub(crate) mod timers;
    }
}

mod ring {
    /// Of a shard that is awake.
    pub(crate) struct Doorbell;

    impl Doorbell {
        pub(crate) fn ring(&self) {}
    }
}

use gateway::{fanout, send_queue, session, transport};

use bytes::Bytes;
use gimbal_codec::{ClientMessageId, Command, UserId, body, frame};

/// Content of one message, bytes: about what a chat message with its envelope takes.
pub const CONTENT_BYTES: usize = 100;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for the same seed.
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to and without `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Bytes {
        (0..count).map(|_| self.number() as u8).collect()
    }
}

/// A whole frame: one send of [`CONTENT_BYTES`] to a user.
pub fn send_frame(rng: &mut Rng, to: UserId, id: u64) -> Bytes {
    let content = rng.bytes(CONTENT_BYTES);
    let client_message_id = ClientMessageId::new(id);
    let send = body::Send { client_message_id, to, command: 1, content: &content, ..Default::default() };
    frame(Command::Send, &id.to_string(), 0, &send)
}
