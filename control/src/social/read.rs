//! Pages of what is known of users, on a view that stands still.

use gimbal_codec::{DeviceId, Seq, UserId};

use crate::error::RequestError;
use crate::store::key::{self, OfDevice, OfPair};
use crate::store::value::{
    AckRecord, CorruptValue, DeviceRecord, FriendRecord, Friendship, NameEntry, Owner, ProfileRecord,
    TokenRecord, UserRecord, Value,
};
use crate::store::{Scan, StoreError, Table, View};

/// Entries that one page looks at for each that it gives, at most.
const LOOKS_PER_ENTRY: usize = 8;
/// Fewest characters of a search.
pub const QUERY_CHARS_MIN: usize = 2;

/// A user with its profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserPage {
    /// User.
    pub user: UserId,
    /// When it was made, and by which phone number.
    pub record: UserRecord,
    /// What it shows; empty until it was written.
    pub profile: ProfileRecord,
}

/// A page, and where the next one begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paged<T> {
    /// What it holds.
    pub items: Vec<T>,
    /// The last key looked at; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// A device of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevicePage {
    /// Device.
    pub device: DeviceId,
    /// What it says of itself.
    pub record: DeviceRecord,
    /// Of our token, Unix milliseconds; `None`: it has none.
    pub expires_at_ms: Option<i64>,
    /// What it has processed.
    pub acked: Seq,
}

/// A user; `None` when there is none.
///
/// # Errors
/// A store error.
pub fn user(view: &dyn View, user: UserId) -> Result<Option<UserPage>, StoreError> {
    let Some(record) = value::<UserRecord>(view, Table::Account, &key::user(user))? else { return Ok(None) };
    let profile = value(view, Table::Account, &key::profile(user))?.unwrap_or_default();
    Ok(Some(UserPage { user, record, profile }))
}

/// The user with this phone number.
///
/// # Errors
/// A store error.
pub fn user_by_phone(view: &dyn View, number: &str) -> Result<Option<UserPage>, StoreError> {
    match value::<Owner>(view, Table::Account, &key::phone(number))? {
        Some(owner) => user(view, owner.user),
        None => Ok(None),
    }
}

/// Users whose nickname holds `part`, from after the key `from` on (empty: the first), at most `limit`.
///
/// # Errors
/// [`RequestError::BadRequest`] for a part of less than [`QUERY_CHARS_MIN`] characters or a foreign `from`; a store error.
pub fn search(
    view: &dyn View,
    part: &str,
    from: &[u8],
    limit: usize,
) -> Result<Paged<UserPage>, RequestError> {
    let part = part.to_lowercase();
    if part.chars().count() < QUERY_CHARS_MIN || part.contains('\0') {
        return Err(RequestError::BadRequest { field: "query", rule: "must be two characters or more" });
    }
    let range = Range::new(key::name_prefix(&part), from)?;
    let mut found = Vec::new();
    let next = range.scan(view, Table::Account, limit, |at, bytes| {
        let entry = NameEntry::from_bytes(bytes)?;
        // Where the part is found again in the same name, that name was shown before.
        let is_first = entry.name.find(&part) == usize::try_from(entry.offset).ok();
        if is_first {
            found.push(key::other_user(at));
        }
        Ok(is_first)
    })?;
    Ok(Paged { items: users(view, &found)?, next })
}

/// What `user` is to others, by rising user id; those of one kind.
///
/// # Errors
/// [`RequestError::BadRequest`] for a foreign `from`; a store error.
pub fn friends(
    view: &dyn View,
    user: UserId,
    kind: Friendship,
    from: &[u8],
    limit: usize,
) -> Result<Paged<(UserPage, FriendRecord)>, RequestError> {
    let range = Range::of_pair(OfPair::Friend, user, from)?;
    let mut found = Vec::new();
    let next = range.scan(view, Table::Social, limit, |at, bytes| {
        let record = FriendRecord::from_bytes(bytes)?;
        let is_wanted = record.friendship == kind;
        if is_wanted {
            found.push((key::other_user(at), record));
        }
        Ok(is_wanted)
    })?;
    let mut items = Vec::with_capacity(found.len());
    for (friend, record) in found {
        items.push((known(view, friend)?, record));
    }
    Ok(Paged { items, next })
}

/// Whom `user` blocks, by rising user id.
///
/// # Errors
/// [`RequestError::BadRequest`] for a foreign `from`; a store error.
pub fn blocked(
    view: &dyn View,
    user: UserId,
    from: &[u8],
    limit: usize,
) -> Result<Paged<UserPage>, RequestError> {
    let range = Range::of_pair(OfPair::Block, user, from)?;
    let mut found = Vec::new();
    let next = range.scan(view, Table::Social, limit, |at, _| {
        found.push(key::other_user(at));
        Ok(true)
    })?;
    Ok(Paged { items: users(view, &found)?, next })
}

/// All devices of a user.
///
/// # Errors
/// A store error.
pub fn devices(view: &dyn View, user: UserId) -> Result<Vec<DevicePage>, StoreError> {
    let (from, to) = [0, u64::MAX].map(|id| OfDevice::Record.key(user, DeviceId::new(id))).into();
    let mut found = Vec::new();
    view.scan(Table::Device, &from, &to, &mut |at, bytes| {
        let device = key::device_of(at).ok_or(CorruptValue { what: "device", why: "foreign key", at: 0 })?;
        found.push((device, DeviceRecord::from_bytes(bytes)?));
        Ok(Scan::Continue)
    })?;
    let mut all = Vec::with_capacity(found.len());
    for (device, record) in found {
        let token: Option<TokenRecord> = value(view, Table::Device, &OfDevice::Token.key(user, device))?;
        let ack: Option<AckRecord> = value(view, Table::Device, &OfDevice::Ack.key(user, device))?;
        let expires_at_ms = token.and_then(|record| record.token).map(|token| token.expires_at_ms);
        let acked = ack.map_or(Seq::default(), |ack| ack.seq);
        all.push(DevicePage { device, record, expires_at_ms, acked });
    }
    Ok(all)
}

/// Keys with one beginning, or those after one of them.
pub(crate) struct Range {
    prefix: Vec<u8>,
    from: Vec<u8>,
}

impl Range {
    pub(crate) fn new(prefix: Vec<u8>, from: &[u8]) -> Result<Self, RequestError> {
        if from.is_empty() {
            return Ok(Self { from: prefix.clone(), prefix });
        }
        if !from.starts_with(&prefix) {
            let rule = "must be the last page's next_page_token";
            return Err(RequestError::BadRequest { field: "page_token", rule });
        }
        // The least key above it.
        Ok(Self { prefix, from: [from, &[0]].concat() })
    }

    fn of_pair(kind: OfPair, user: UserId, from: &[u8]) -> Result<Self, RequestError> {
        let prefix = kind.key(user, UserId::default());
        Self::new(prefix[..prefix.len() - size_of::<u64>()].to_vec(), from)
    }

    /// Shows `take` keys until it took `limit` of them, or too many were looked at; gives the last one unless all were shown.
    pub(crate) fn scan(
        &self,
        view: &dyn View,
        table: Table,
        limit: usize,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<bool, CorruptValue>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let (mut taken, mut looked, mut last, mut is_more) = (0, 0, None, false);
        // Nothing in a key is above 0xf4 where a text stands, and eight of these are above any number that is used.
        let to = [&self.prefix[..], &[0xff; 9]].concat();
        view.scan(table, &self.from, &to, &mut |at, value| {
            if taken == limit || looked == limit * LOOKS_PER_ENTRY {
                is_more = true;
                return Ok(Scan::Stop);
            }
            last = Some(at.to_vec());
            looked += 1;
            taken += usize::from(take(at, value)?);
            Ok(Scan::Continue)
        })?;
        Ok(last.filter(|_| is_more))
    }
}

fn users(view: &dyn View, ids: &[UserId]) -> Result<Vec<UserPage>, StoreError> {
    ids.iter().map(|id| known(view, *id)).collect()
}

fn known(view: &dyn View, id: UserId) -> Result<UserPage, StoreError> {
    user(view, id)?.ok_or_else(|| CorruptValue { what: "user", why: "missing", at: 0 }.into())
}

pub(crate) fn value<V: Value>(view: &dyn View, table: Table, key: &[u8]) -> Result<Option<V>, StoreError> {
    Ok(view.get(table, key)?.map(|bytes| V::from_bytes(&bytes)).transpose()?)
}
