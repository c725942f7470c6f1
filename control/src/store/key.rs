//! Typed ordered keys. All numbers are big endian, so keys sort as numbers do; every key starts with its partition.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | meta | partition 2 (0), kind 1 | [`Meta`] |
//! | account | partition 2 (of the user), 1, user 8 | `UserRecord` |
//! | account | partition 2 (of the number), 2, phone number | `Owner` |
//! | account | partition 2 (of the name), 3, length of the issuer 1, issuer, name | `Owner` |
//! | account | partition 2 (of the user), 4, user 8 | `NotBefore` |
//! | account | partition 2 (of the user), 5, user 8 | `ProfileRecord` |
//! | account | partition 2 (of the gram), 6, suffix of a nickname, 0, user 8 | `NameEntry` |
//! | device | partition 2 (of the user), 1, user 8, device 8 | `DeviceRecord` |
//! | device | partition 2 (of the user), 2, user 8, device 8 | `TokenRecord` |
//! | device | partition 2 (of the user), 3, user 8, device 8 | `AckRecord` |
//! | device | partition 2 (of the device), 4, device 8 | `Owner` |
//! | dedup | partition 2 (of the recipient), sender's user 8, device 8, 0 (8) | `DedupHead` |
//! | dedup | partition 2 (of the recipient), sender's user 8, device 8, client message id 8 | `DedupEntry` |
//! | idem | partition 2 (of the key), 1, key | `IdemEntry` |
//! | idem | partition 2 (of the key), 2, expiry in Unix milliseconds 8, key | empty: the order of expiry |
//! | mailbox | partition 2 (of the user), user 8, 0 (8) | `MailboxHead` |
//! | mailbox | partition 2 (of the user), user 8, seq 8 | `Entry` |
//! | message | partition 2 (of its readers), message id 8 | `SharedBody` |
//! | social | partition 2 (of the user), 1, user 8, the other user 8 | `FriendRecord` |
//! | social | partition 2 (of the user), 2, user 8, the blocked user 8 | `BlockRecord` |
//! | message | partition 2 (of the group), group 8, place in its order 8 | `GroupMessage` |
//! | social | partition 2 (of the user), 3, user 8, 0 (8) | `SocialCounts` |
//! | social | partition 2 (of the user), 4, user 8, group 8 | `JoinedRecord` |
//! | social | partition 2 (of the group), 5, group 8 | `GroupRecord` |
//! | social | partition 2 (of the group), 6, group 8 | `GroupHead` |
//! | social | partition 2 (of the group), 7, group 8 | `FanOutRecord` |
//! | social | partition 2 (of the group), 8, group 8, user 8 | `MemberRecord` |
//! | social | partition 2 (of the user), 9, user 8 | `GroupCount` |
//! | event | partition 2 (0), 1, number 8 | `EventRecord` |
//! | event | partition 2 (of the user), 2, user 8, device 8 | `OnlineRecord` |
//! | event | partition 2 (of the user), 3, user 8 | `LastSeen` |
//! | room | not yet written | |

use gimbal_codec::{ClientMessageId, DeviceId, GroupId, MessageId, Seq, UserId};

use crate::partition::Partition;

/// What `meta` holds, by its kind byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Meta {
    /// Version of keys and values; a newer one refuses to open.
    Schema = 1,
    /// Openings of this directory.
    ControlEpoch = 2,
    /// The next user id.
    NextUser = 3,
    /// The next device id.
    NextDevice = 4,
    /// The last event that was trimmed.
    EventFloor = 6,
    /// The next group id.
    NextGroup = 5,
}

impl Meta {
    /// 3 bytes.
    pub fn key(self) -> [u8; 3] {
        let [high, low] = Partition::META.to_be_bytes();
        [high, low, self as u8]
    }

    /// From the kind byte.
    pub fn from_u8(kind: u8) -> Option<Self> {
        [
            Self::Schema,
            Self::ControlEpoch,
            Self::NextUser,
            Self::NextDevice,
            Self::NextGroup,
            Self::EventFloor,
        ]
        .into_iter()
        .find(|meta| *meta as u8 == kind)
    }
}

pub(super) const ACCOUNT_USER: u8 = 1;
pub(super) const ACCOUNT_PHONE: u8 = 2;
pub(super) const ACCOUNT_SUBJECT: u8 = 3;
pub(super) const ACCOUNT_NOT_BEFORE: u8 = 4;

/// `account`: a user. 11 bytes.
pub fn user(user: UserId) -> [u8; 11] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &[ACCOUNT_USER], &user.get().to_be_bytes()])
}

/// `account`: whose a phone number is. 3 bytes and the number.
pub fn phone(number: &str) -> Vec<u8> {
    [&Partition::of_text(number).to_be_bytes()[..], &[ACCOUNT_PHONE], number.as_bytes()].concat()
}

/// `account`: whose an issuer's name is. 4 bytes, issuer and name.
///
/// # Panics
/// When the issuer is longer than 255 bytes.
pub fn subject(issuer: &str, name: &str) -> Vec<u8> {
    let partition = Partition::of_text(name).to_be_bytes();
    let length = u8::try_from(issuer.len()).expect("an issuer is bounded where it is read");
    [&partition[..], &[ACCOUNT_SUBJECT, length], issuer.as_bytes(), name.as_bytes()].concat()
}

/// `account`: since when a user's tokens count. 11 bytes.
pub fn not_before(user: UserId) -> [u8; 11] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &[ACCOUNT_NOT_BEFORE], &user.get().to_be_bytes()])
}

pub(super) const ACCOUNT_PROFILE: u8 = 5;
pub(super) const ACCOUNT_NAME: u8 = 6;

/// `account`: what a user shows. 11 bytes.
pub fn profile(user: UserId) -> [u8; 11] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &[ACCOUNT_PROFILE], &user.get().to_be_bytes()])
}

/// `account`: what all keys of nicknames begin with that hold `part`. Its partition is that of the gram, the first two
/// characters: so a search looks in one place. Texts are in lower case and hold no NUL.
pub fn name_prefix(part: &str) -> Vec<u8> {
    let gram = part.char_indices().nth(2).map_or(part, |(end, _)| &part[..end]);
    [&Partition::of_text(gram).to_be_bytes()[..], &[ACCOUNT_NAME], part.as_bytes()].concat()
}

/// `account`: a suffix of a nickname and whose it is. 12 bytes and the suffix.
pub fn name(suffix: &str, user: UserId) -> Vec<u8> {
    let mut key = name_prefix(suffix);
    key.push(0);
    key.extend_from_slice(&user.get().to_be_bytes());
    key
}

/// What `social` holds for a user, by its kind byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OfPair {
    /// What the other is to the user.
    Friend = 1,
    /// The other is blocked.
    Block = 2,
    /// How many there are; the other is 0.
    Counts = 3,
}

impl OfPair {
    /// 19 bytes.
    pub fn key(self, user: UserId, other: UserId) -> [u8; 19] {
        concat(&[
            &Partition::of_user(user).to_be_bytes(),
            &[self as u8],
            &user.get().to_be_bytes(),
            &other.get().to_be_bytes(),
        ])
    }
}

/// What `social` holds for a group, by its kind byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OfGroup {
    /// What it shows, and whose it is.
    Record = 5,
    /// Where it stands.
    Head = 6,
    /// Its messages are on their way.
    FanOut = 7,
}

impl OfGroup {
    /// 11 bytes.
    pub fn key(self, group: GroupId) -> [u8; 11] {
        concat(&[&Partition::of_group(group).to_be_bytes(), &[self as u8], &group.get().to_be_bytes()])
    }
}

/// `social`: where the groups of a partition begin whose messages are on their way, and where they end.
pub fn fan_outs(home: Partition) -> [[u8; 3]; 2] {
    let [high, low] = home.to_be_bytes();
    [[high, low, OfGroup::FanOut as u8], [high, low, OfGroup::FanOut as u8 + 1]]
}

pub(super) const JOINED: u8 = 4;
pub(super) const MEMBER: u8 = 8;
pub(super) const GROUP_COUNT: u8 = 9;

/// `social`: a user in a group. 19 bytes.
pub fn member(group: GroupId, user: UserId) -> [u8; 19] {
    let partition = Partition::of_group(group).to_be_bytes();
    concat(&[&partition, &[MEMBER], &group.get().to_be_bytes(), &user.get().to_be_bytes()])
}

/// `social`: a group that a user is in. 19 bytes.
pub fn joined(user: UserId, group: GroupId) -> [u8; 19] {
    let partition = Partition::of_user(user).to_be_bytes();
    concat(&[&partition, &[JOINED], &user.get().to_be_bytes(), &group.get().to_be_bytes()])
}

/// `social`: how many groups a user is in. 11 bytes.
pub fn group_count(user: UserId) -> [u8; 11] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &[GROUP_COUNT], &user.get().to_be_bytes()])
}

/// The group in the last eight bytes of a key of [`joined`] or [`OfGroup`].
///
/// # Panics
/// When the key is shorter.
pub fn group_of(key: &[u8]) -> GroupId {
    GroupId::new(other_user(key).get())
}

/// The user in the last eight bytes of a key of [`OfPair`], [`member`] or [`name`].
///
/// # Panics
/// When the key is shorter.
pub fn other_user(key: &[u8]) -> UserId {
    UserId::new(u64::from_be_bytes(*key.last_chunk().expect("the key ends with a user")))
}

/// What `device` holds for a user's device, by its kind byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OfDevice {
    /// What the device says of itself.
    Record = 1,
    /// Hash, expiry, generation.
    Token = 2,
    /// What it has processed.
    Ack = 3,
}

impl OfDevice {
    /// 19 bytes.
    pub fn key(self, user: UserId, device: DeviceId) -> [u8; 19] {
        concat(&[
            &Partition::of_user(user).to_be_bytes(),
            &[self as u8],
            &user.get().to_be_bytes(),
            &device.get().to_be_bytes(),
        ])
    }
}

/// The device in a key of [`OfDevice`]; `None` when it is another key.
pub fn device_of(key: &[u8]) -> Option<DeviceId> {
    let bytes: &[u8; 19] = key.try_into().ok()?;
    let (_, device) = bytes.split_last_chunk()?;
    Some(DeviceId::new(u64::from_be_bytes(*device)))
}

pub(super) const DEVICE_OWNER: u8 = 4;

/// `device`: which user a device belongs to. 11 bytes.
pub fn device_owner(device: DeviceId) -> [u8; 11] {
    concat(&[&Partition::of_device(device).to_be_bytes(), &[DEVICE_OWNER], &device.get().to_be_bytes()])
}

/// What one client message id is counted within.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DedupScope {
    /// Of the recipient.
    pub home: Partition,
    /// Sender.
    pub user: UserId,
    /// Sending device.
    pub device: DeviceId,
}

impl DedupScope {
    /// `dedup`: 26 bytes. Id 0 is the head.
    pub fn key(self, id: ClientMessageId) -> [u8; 26] {
        concat(&[
            &self.home.to_be_bytes(),
            &self.user.get().to_be_bytes(),
            &self.device.get().to_be_bytes(),
            &id.get().to_be_bytes(),
        ])
    }

    /// Whose key this is; `None` for what is not 26 bytes of a partition that exists.
    pub fn of_key(key: &[u8]) -> Option<Self> {
        let key: &[u8; 26] = key.try_into().ok()?;
        let number = |at: usize| Some(u64::from_be_bytes(*key[at..].first_chunk()?));
        let home = Partition::from_u16(u16::from_be_bytes([key[0], key[1]]))?;
        Some(Self { home, user: UserId::new(number(2)?), device: DeviceId::new(number(10)?) })
    }

    /// `dedup`: {floor, highest, count}.
    pub fn head_key(self) -> [u8; 26] {
        self.key(ClientMessageId::new(0))
    }
}

pub(super) const IDEM_ENTRY: u8 = 1;
pub(super) const IDEM_EXPIRY: u8 = 2;

/// `idem`: an entry. 3 bytes and the key.
pub fn idem(key: &str) -> Vec<u8> {
    [&Partition::of_text(key).to_be_bytes()[..], &[IDEM_ENTRY], key.as_bytes()].concat()
}

/// `idem`: the order of expiry. 11 bytes and the key. Times before 1970 count as 1970.
pub fn idem_expiry(partition: Partition, expires_at_ms: i64, key: &str) -> Vec<u8> {
    let at = u64::try_from(expires_at_ms).unwrap_or(0);
    [&partition.to_be_bytes()[..], &[IDEM_EXPIRY], &at.to_be_bytes(), key.as_bytes()].concat()
}

/// Length of [`idem_expiry`] before the key.
pub const IDEM_EXPIRY_PREFIX_BYTES: usize = 11;

/// `mailbox`: an entry, or under seq 0 the head. 18 bytes.
pub fn mailbox(user: UserId, seq: Seq) -> [u8; 18] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &user.get().to_be_bytes(), &seq.get().to_be_bytes()])
}

/// `message`: a shared body. 10 bytes.
pub fn message(home: Partition, id: MessageId) -> [u8; 10] {
    concat(&[&home.to_be_bytes(), &id.get().to_be_bytes()])
}

pub(super) const EVENT: u8 = 1;
pub(super) const EVENT_ONLINE: u8 = 2;
pub(super) const EVENT_LAST_SEEN: u8 = 3;

/// `event`: one of the stream. 11 bytes.
pub fn event(number: u64) -> [u8; 11] {
    concat(&[&Partition::META.to_be_bytes(), &[EVENT], &number.to_be_bytes()])
}

/// `event`: a device that is online as the stream has it. 19 bytes.
pub fn online(user: UserId, device: DeviceId) -> [u8; 19] {
    concat(&[
        &Partition::of_user(user).to_be_bytes(),
        &[EVENT_ONLINE],
        &user.get().to_be_bytes(),
        &device.get().to_be_bytes(),
    ])
}

/// `event`: what all keys of [`online`] in one partition begin with, and what comes after them.
pub fn online_range(partition: Partition) -> ([u8; 3], [u8; 3]) {
    let [high, low] = partition.to_be_bytes();
    ([high, low, EVENT_ONLINE], [high, low, EVENT_ONLINE + 1])
}

/// The user and the device at the end of a key of [`online`].
pub fn device_at_end(key: &[u8]) -> Option<(UserId, DeviceId)> {
    let [user, device] = *key.last_chunk::<16>()?.as_chunks::<8>().0.first_chunk::<2>()?;
    Some((UserId::new(u64::from_be_bytes(user)), DeviceId::new(u64::from_be_bytes(device))))
}

/// `event`: when a user was last online. 11 bytes.
pub fn last_seen(user: UserId) -> [u8; 11] {
    concat(&[&Partition::of_user(user).to_be_bytes(), &[EVENT_LAST_SEEN], &user.get().to_be_bytes()])
}

/// `message`: a message of a group. 18 bytes.
pub fn group_message(group: GroupId, seq: Seq) -> [u8; 18] {
    let partition = Partition::of_group(group).to_be_bytes();
    concat(&[&partition, &group.get().to_be_bytes(), &seq.get().to_be_bytes()])
}

fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    let mut at = 0;
    for part in parts {
        key[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    assert_eq!(at, N, "the parts fill the key");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        let of = |seq| mailbox(UserId::new(10_000), Seq::new(seq));
        assert!(of(0) < of(1) && of(9) < of(10) && of(255) < of(256) && of(256) < of(u64::MAX));
        assert_eq!(of(1)[..2], Partition::of_user(UserId::new(10_000)).to_be_bytes());
        assert_eq!(of(0x0102)[10..], [0, 0, 0, 0, 0, 0, 1, 2]);
        let expiry = |at| idem_expiry(Partition::META, at, "k");
        assert!(expiry(-5) == expiry(0) && expiry(9) < expiry(10));
        assert_eq!(expiry(1).len(), IDEM_EXPIRY_PREFIX_BYTES + 1);
    }

    #[test]
    fn kinds_of_one_table_never_share_a_key() {
        let (user, device) = (UserId::new(7), DeviceId::new(7));
        let kinds =
            [OfDevice::Record, OfDevice::Token, OfDevice::Ack].map(|kind| kind.key(user, device).to_vec());
        assert!(kinds.iter().all(|key| key[..] != device_owner(device)));
        assert!(kinds[0] < kinds[1] && kinds[1] < kinds[2]);
        assert!(kinds.iter().all(|key| device_of(key) == Some(device)));
        assert_eq!(device_of(&device_owner(device)), None);
        assert_ne!(subject("a", "bc"), subject("ab", "c"));
        assert_ne!(super::user(user), not_before(user));
    }
}
