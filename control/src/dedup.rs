//! Repeated sends are recognised by the device's own rising message id.
//!
//! The memory of it lives with the recipient's partition, which decides alone: an id that a device uses again for a
//! recipient of another partition is a new message there. Within one partition the same id with another recipient or
//! body is a conflict.

use std::collections::BTreeMap;

use gimbal_codec::{ClientMessageId, DeviceId};

use crate::store::key::DedupScope;
use crate::store::value::{CorruptValue, DedupEntry, DedupHead, Value as _};
use crate::store::{Scan, StoreError, Table, View};

/// Ids remembered for each device and partition, at least.
pub const WINDOW: u64 = 1024;
/// How far the memory outgrows the window before it is trimmed at one go: one scan for this many sends. Few, because
/// everybody's sends wait for the scan.
pub const SLACK: u64 = 32;

/// Ids that one command forgets because of their age: everybody's sends wait for the scan and the removals.
pub const FORGOTTEN_MAX: usize = 128;

/// Ids remembered for this device after a trim. Devices differ, so that those which send in step are not trimmed in one
/// batch.
pub const fn window(device: DeviceId) -> u64 {
    WINDOW + device.get() % SLACK
}

impl DedupHead {
    /// Of a device that has not sent to this partition.
    pub const EMPTY: Self =
        Self { floor: ClientMessageId::new(0), highest: ClientMessageId::new(0), count: 0 };
}

/// Entries that this batch has added, beside those of the store.
pub(crate) type Added = BTreeMap<(DedupScope, ClientMessageId), DedupEntry>;

/// The head after `id` joined, and the ids to remove then (usually none): the lowest ones, `id` perhaps among them.
///
/// # Errors
/// When the store cannot be scanned.
pub(crate) fn admit(
    view: &dyn View,
    added: &Added,
    scope: DedupScope,
    head: DedupHead,
    id: ClientMessageId,
) -> Result<(DedupHead, Vec<ClientMessageId>), StoreError> {
    let mut next = DedupHead { highest: head.highest.max(id), count: head.count + 1, ..head };
    let window = window(scope.device);
    if next.count < window + SLACK {
        return Ok((next, Vec::new()));
    }
    let excess = usize::try_from(next.count - window).expect("the excess is about the slack");
    let mut lowest = stored_above(view, scope, head.floor, excess)?;
    let above = ClientMessageId::new(head.floor.get() + 1);
    let of_batch = added.range((scope, above)..=(scope, ClientMessageId::new(u64::MAX)));
    lowest.extend(of_batch.take(excess).map(|((_, id), _)| *id));
    lowest.push(id);
    lowest.sort_unstable();
    lowest.truncate(excess);
    next.floor = *lowest.last().expect("it holds at least the new id");
    next.count -= lowest.len() as u64;
    Ok((next, lowest))
}

/// The head after the oldest ids were forgotten, and those ids: the lowest ones that were answered before `before_ms`, up
/// to the first that was not, [`FORGOTTEN_MAX`] at most. What is forgotten stays below the floor, so that it can never be
/// stored again; the head itself stays for that.
///
/// # Errors
/// When the store cannot be scanned.
pub(crate) fn age(
    view: &dyn View,
    added: &Added,
    scope: DedupScope,
    head: DedupHead,
    before_ms: i64,
) -> Result<(DedupHead, Vec<ClientMessageId>), StoreError> {
    let (above, last) = (ClientMessageId::new(head.floor.get() + 1), ClientMessageId::new(u64::MAX));
    // The floor must not pass what this batch has added: the store below does not show it.
    let mut of_batch = added.range((scope, above)..=(scope, last));
    let end = of_batch.next().map_or(last, |((_, id), _)| *id);
    let mut gone = Vec::new();
    view.scan(Table::Dedup, &scope.key(above), &scope.key(end), &mut |key, value| {
        let is_aged = DedupEntry::from_bytes(value)?.created_at_ms < before_ms;
        if !is_aged || gone.len() == FORGOTTEN_MAX {
            return Ok(Scan::Stop);
        }
        gone.push(id_of(key));
        Ok(Scan::Continue)
    })?;
    let floor = gone.last().copied().unwrap_or(head.floor);
    let count = head.count.saturating_sub(gone.len() as u64);
    Ok((DedupHead { floor, count, ..head }, gone))
}

/// Senders whose oldest remembered id was answered before `before_ms`, [`AGED_MAX`] at most, among up to `looks_max`
/// senders from the key `from` on (empty: the first); and where to go on, `None` at the end. For reader threads: it may
/// read from disk, and [`age`] decides.
///
/// # Errors
/// When the store cannot be scanned, or holds what is not understood.
pub fn aged(
    view: &dyn View,
    from: &[u8],
    before_ms: i64,
    looks_max: usize,
) -> Result<(Vec<DedupScope>, Option<Vec<u8>>), StoreError> {
    let (mut found, mut from) = (Vec::new(), from.to_vec());
    for _ in 0..looks_max {
        let mut seen: Option<DedupScope> = None;
        view.scan(Table::Dedup, &from, &END, &mut |key, value| {
            let scope = DedupScope::of_key(key).ok_or(NO_SCOPE)?;
            let id = id_of(key);
            match seen {
                None => seen = Some(scope),
                Some(seen) if seen != scope => return Ok(Scan::Stop),
                Some(_) => {}
            }
            if id.is_none() {
                return Ok(Scan::Continue);
            }
            if DedupEntry::from_bytes(value)?.created_at_ms < before_ms {
                found.push(scope);
            }
            Ok(Scan::Stop)
        })?;
        let Some(scope) = seen else { return Ok((found, None)) };
        from = [&scope.key(ClientMessageId::new(u64::MAX))[..], &[0]].concat();
        if found.len() == AGED_MAX {
            break;
        }
    }
    Ok((found, Some(from)))
}

/// Senders that one look finds: as many commands of [`FORGOTTEN_MAX`] may follow it.
pub const AGED_MAX: usize = 16;
/// Behind all keys: partitions are fewer.
const END: [u8; 2] = [0xff; 2];
const NO_SCOPE: CorruptValue = CorruptValue { what: "dedup key", why: "wrong length", at: 0 };

fn id_of(key: &[u8]) -> ClientMessageId {
    let id = key.last_chunk().expect("a dedup key ends with eight bytes");
    ClientMessageId::new(u64::from_be_bytes(*id))
}

fn stored_above(
    view: &dyn View,
    scope: DedupScope,
    floor: ClientMessageId,
    limit: usize,
) -> Result<Vec<ClientMessageId>, StoreError> {
    let mut ids = Vec::with_capacity(limit + 1);
    let from = scope.key(ClientMessageId::new(floor.get() + 1));
    // No device reaches the last id, so the range may leave it out.
    let to = scope.key(ClientMessageId::new(u64::MAX));
    view.scan(Table::Dedup, &from, &to, &mut |key, _| {
        ids.push(id_of(key));
        Ok(if ids.len() < limit { Scan::Continue } else { Scan::Stop })
    })?;
    Ok(ids)
}

/// A 64-bit digest that tells two bodies of one honest caller apart; it is part of the disk format. Not for secrets.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of nothing; `kind` separates uses.
    pub const fn new(kind: u64) -> Self {
        Self(fold(kind ^ SEED_A, SEED_B))
    }

    /// Joins a number.
    #[must_use]
    pub const fn number(self, value: u64) -> Self {
        Self(fold(self.0 ^ value, SEED_A))
    }

    /// Joins bytes and their length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut state = self.number(bytes.len() as u64).0;
        let (chunks, rest) = bytes.as_chunks::<16>();
        for chunk in chunks {
            let (low, high) = chunk.split_at(8);
            let word =
                |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half a chunk is eight bytes"));
            state = fold(word(low) ^ state, word(high) ^ SEED_B);
        }
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        let last = u128::from_le_bytes(last);
        Self(fold(last as u64 ^ state, (last >> 64) as u64 ^ SEED_A))
    }

    /// The digest.
    pub const fn finish(self) -> u64 {
        fold(self.0 ^ SEED_B, SEED_A)
    }
}

/// Fractions of the golden ratio and of the square root of two: odd, and half of their bits set.
const SEED_A: u64 = 0x9e37_79b9_7f4a_7c15;
const SEED_B: u64 = 0x6a09_e667_f3bc_c909;

/// Folded multiply: both halves of the 128-bit product.
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_never_changes() {
        assert_eq!(Fingerprint::new(1).number(10_000).bytes(b"").finish(), GOLDEN[0]);
        assert_eq!(Fingerprint::new(1).number(10_000).bytes(b"hello, world and more").finish(), GOLDEN[1]);
    }

    const GOLDEN: [u64; 2] = [11_804_030_583_429_204_063, 657_285_937_309_310_080];

    #[test]
    fn lengths_and_places_tell_bodies_apart() {
        let of = |parts: &[&[u8]]| {
            parts.iter().fold(Fingerprint::new(1), |state, part| state.bytes(part)).finish()
        };
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a"]), of(&[b"a\0"]));
        assert_ne!(of(&[&[0; 16]]), of(&[&[0; 32]]));
        assert_ne!(Fingerprint::new(1).finish(), Fingerprint::new(2).finish());
    }
}
