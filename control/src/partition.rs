//! The unit of order and ownership: every key on disk starts with it.

use gimbal_codec::{DeviceId, GroupId, UserId};

/// One of [`Partition::COUNT`] partitions. The mapping from ids is fixed for ever: it is part of the disk format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Partition(u16);

impl Partition {
    /// How many there are.
    pub const COUNT: u16 = 1024;

    /// Holds what belongs to the whole store: schema, epoch, counters.
    pub const META: Self = Self(0);

    /// Home of a user: account, devices, mailbox, and the deduplication of what is sent to them.
    pub const fn of_user(user: UserId) -> Self {
        Self::of_u64(user.get())
    }

    /// Home of the entry that tells which user a device belongs to.
    pub const fn of_device(device: DeviceId) -> Self {
        Self::of_u64(device.get())
    }

    /// Home of a group: what it shows, its members, its messages, and the deduplication of what is sent to it.
    pub const fn of_group(group: GroupId) -> Self {
        Self::of_u64(group.get())
    }

    /// Home of a text: a phone number or an idempotency key.
    pub const fn of_text(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut hash = FNV_OFFSET;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
            at += 1;
        }
        Self::of_u64(hash)
    }

    /// From the two bytes that start a key; `None` when out of range.
    pub const fn from_u16(value: u16) -> Option<Self> {
        if value < Self::COUNT { Some(Self(value)) } else { None }
    }

    /// 0 to 1,023.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The first two bytes of every key of this partition.
    pub const fn to_be_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    /// The top ten bits of [`mix`].
    const fn of_u64(value: u64) -> Self {
        Self((mix(value) >> (64 - Self::COUNT.trailing_zeros())) as u16)
    }
}

/// FNV-1a, 64 bits (RFC 9923).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const _: () = assert!(Partition::COUNT.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_never_changes() {
        // The first outputs of SplitMix64 from seed 0 and from its first increment are published values.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
        let of = |id| Partition::of_user(UserId::new(id)).get();
        assert_eq!([of(0), of(10_000), of(10_001), of(u64::MAX)], GOLDEN_USERS);
        assert_eq!(Partition::of_device(DeviceId::new(10_000)).get(), of(10_000));
        assert_eq!(["", "+4912345678", "key-1"].map(|text| Partition::of_text(text).get()), GOLDEN_TEXTS);
    }

    const GOLDEN_USERS: [u16; 4] = [904, 554, 9, 915];
    const GOLDEN_TEXTS: [u16; 3] = [782, 949, 759];

    #[test]
    fn consecutive_ids_spread_evenly() {
        let mut counts = [0_u32; Partition::COUNT as usize];
        for id in 10_000..10_000 + 102_400 {
            counts[usize::from(Partition::of_user(UserId::new(id)).get())] += 1;
        }
        assert!(counts.iter().all(|count| (50..200).contains(count)), "each holds about 100");
    }
}
