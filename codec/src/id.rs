//! Identifiers as types, so that two numbers cannot be swapped.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps the number as it stands on the wire or on disk.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number as it stands on the wire or on disk.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Zero is never assigned: on the wire it means "absent".
            pub const fn is_none(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id!(
    /// A person. Assigned from 10,000 upwards; any other number is simply unknown.
    UserId
);
id!(
    /// One installation of a user. Assigned from 10,000 upwards.
    DeviceId
);
id!(
    /// An ephemeral broadcast group of sessions. Chosen by the backend; 0 means "no room".
    RoomId
);
id!(
    /// A durable group of users. Assigned from 10,000 upwards; 0 means "no group".
    GroupId
);
id!(
    /// One stored message: 24 bits control epoch, 40 bits counter; unique for the life of a data directory.
    MessageId
);
id!(
    /// Position in a mailbox: gapless from 1; 0 is "before the first".
    Seq
);
id!(
    /// The sending device's own number for a message; rises with every new message of that device.
    ClientMessageId
);
id!(
    /// One attachment of a session to control: 24 bits control epoch, 40 bits counter. A larger one is newer.
    Attach
);
id!(
    /// One gateway process, by configuration; with its epoch it names one life of that process.
    GatewayId
);

impl Seq {
    /// The seq that follows.
    ///
    /// # Panics
    /// At `u64::MAX`, which no mailbox reaches.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a mailbox never holds 2^64 messages"))
    }
}

/// Joins a durable epoch (24 bits) and a counter of that epoch (40 bits) into one rising number.
///
/// # Panics
/// When either part is out of range: 16 million restarts, or a trillion numbers in one life.
pub const fn epoch_number(epoch: u32, counter: u64) -> u64 {
    assert!(epoch < 1 << 24 && counter < 1 << 40);
    ((epoch as u64) << 40) | counter
}

/// One shard of a gateway, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ShardId(pub u8);

/// One session slot of one gateway: 8 bits shard, 24 bits slot index, 32 bits slot generation.
/// A key whose generation is past finds nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(u64);

impl SessionKey {
    /// Slots of one shard: 2^24.
    pub const INDEX_MAX: u32 = (1 << 24) - 1;

    /// Packs the three parts.
    ///
    /// # Panics
    /// When `index` is above [`Self::INDEX_MAX`].
    pub const fn new(shard: ShardId, index: u32, generation: u32) -> Self {
        assert!(index <= Self::INDEX_MAX);
        Self(((shard.0 as u64) << 56) | ((index as u64) << 32) | generation as u64)
    }

    /// From its packed form, as the link carries it.
    pub const fn from_u64(packed: u64) -> Self {
        Self(packed)
    }

    /// Packed form.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The shard that owns the slot.
    pub const fn shard(self) -> ShardId {
        ShardId((self.0 >> 56) as u8)
    }

    /// Slot index within the shard.
    pub const fn index(self) -> u32 {
        ((self.0 >> 32) & Self::INDEX_MAX as u64) as u32
    }

    /// Slot generation.
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.shard().0, self.index(), self.generation())
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_key_keeps_its_three_parts() {
        let key = SessionKey::new(ShardId(7), SessionKey::INDEX_MAX, u32::MAX);
        assert_eq!(
            (key.shard(), key.index(), key.generation()),
            (ShardId(7), SessionKey::INDEX_MAX, u32::MAX)
        );
        assert_eq!(SessionKey::from_u64(key.to_u64()), key);
        assert_eq!(key.to_string(), "7.16777215.4294967295");
    }

    #[test]
    fn a_later_epoch_is_always_newer() {
        assert!(epoch_number(2, 0) > epoch_number(1, (1 << 40) - 1));
    }
}
