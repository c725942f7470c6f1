//! Stored keys and values as text, for people.

use std::fmt::{Debug, Write as _};

use super::key::{
    ACCOUNT_NAME, ACCOUNT_NOT_BEFORE, ACCOUNT_PHONE, ACCOUNT_PROFILE, ACCOUNT_SUBJECT, ACCOUNT_USER,
    DEVICE_OWNER, EVENT, EVENT_LAST_SEEN, EVENT_ONLINE, GROUP_COUNT, IDEM_ENTRY, IDEM_EXPIRY,
    IDEM_EXPIRY_PREFIX_BYTES, JOINED, MEMBER, Meta, OfDevice, OfGroup, OfPair,
};
use super::value::{
    AckRecord, BlockRecord, DedupEntry, DedupHead, DeviceRecord, Entry, EventRecord, FanOutRecord,
    FriendRecord, GroupCount, GroupHead, GroupMessage, GroupRecord, IdemEntry, JoinedRecord, LastSeen,
    MailboxHead, MemberRecord, MetaNumber, NameEntry, NotBefore, OnlineRecord, Owner, ProfileRecord,
    SharedBody, SocialCounts, TokenRecord, UserRecord, Value,
};
use super::{Scan, StoreError, Table, View};

/// Above every key: partitions are far below.
const PAST_ALL_KEYS: [u8; 2] = [0xff; 2];

/// Shows each key and value of a table as one line of text, in order.
///
/// # Errors
/// When the store cannot be read; a value that is not understood is said so in its line.
pub fn describe_all(
    view: &dyn View,
    table: Table,
    show: &mut dyn FnMut(String) -> Scan,
) -> Result<(), StoreError> {
    view.scan(table, &[], &PAST_ALL_KEYS, &mut |key, value| Ok(show(describe(table, key, value))))
}

/// One line: partition, what the key names, and the value. Never a token (only hashes are stored), and of a message's
/// content only its length.
pub fn describe(table: Table, key: &[u8], value: &[u8]) -> String {
    let (partition, rest) = key.split_at(key.len().min(2));
    let partition = partition.iter().fold(0_u16, |sum, byte| (sum << 8) | u16::from(*byte));
    let text = match table {
        Table::Meta => meta(rest, value),
        Table::Account => account(rest, value),
        Table::Device => device(rest, value),
        Table::Dedup => dedup(rest, value),
        Table::Idem => idem(rest, value),
        Table::Mailbox => mailbox(rest, value),
        Table::Message => message(rest, value),
        Table::Social => social(rest, value),
        Table::Event => event(rest, value),
        Table::Room => None,
    };
    let text =
        text.unwrap_or_else(|| format!("key not understood: {} = {}", hex::encode(key), hex::encode(value)));
    format!("{}/{partition:04} {text}", table.name())
}

fn meta(key: &[u8], value: &[u8]) -> Option<String> {
    let &[kind] = key else { return None };
    Some(format!("{:?} = {}", Meta::from_u8(kind)?, of::<MetaNumber>(value)))
}

fn account(key: &[u8], value: &[u8]) -> Option<String> {
    match key.split_first()? {
        (&ACCOUNT_USER, rest) => Some(format!("user {} = {}", number(rest, 0)?, of::<UserRecord>(value))),
        (&ACCOUNT_PHONE, rest) => {
            Some(format!("phone {} = {}", String::from_utf8_lossy(rest), of::<Owner>(value)))
        }
        (&ACCOUNT_SUBJECT, rest) => {
            let (&length, rest) = rest.split_first()?;
            let (issuer, name) = rest.split_at_checked(usize::from(length))?;
            let [issuer, name] = [issuer, name].map(String::from_utf8_lossy);
            Some(format!("subject {name} of {issuer} = {}", of::<Owner>(value)))
        }
        (&ACCOUNT_NOT_BEFORE, rest) => {
            Some(format!("user {} = {}", number(rest, 0)?, of::<NotBefore>(value)))
        }
        (&ACCOUNT_PROFILE, rest) => {
            Some(format!("profile {} = {}", number(rest, 0)?, of::<ProfileRecord>(value)))
        }
        (&ACCOUNT_NAME, rest) => {
            let (suffix, user) = rest.split_at_checked(rest.len().checked_sub(9)?)?;
            let (suffix, user) = (String::from_utf8_lossy(suffix), number(&user[1..], 0)?);
            Some(format!("name {suffix} of user {user} = {}", of::<NameEntry>(value)))
        }
        _ => None,
    }
}

fn social(key: &[u8], value: &[u8]) -> Option<String> {
    let (&kind, rest) = key.split_first()?;
    let user = number(rest, 0)?;
    let group = user;
    match kind {
        GROUP_COUNT => return Some(format!("user {user} = {}", of::<GroupCount>(value))),
        kind if kind == OfGroup::Record as u8 => {
            return Some(format!("group {group} = {}", of::<GroupRecord>(value)));
        }
        kind if kind == OfGroup::Head as u8 => {
            return Some(format!("group {group} = {}", of::<GroupHead>(value)));
        }
        kind if kind == OfGroup::FanOut as u8 => {
            return Some(format!("group {group} = {}", of::<FanOutRecord>(value)));
        }
        _ => {}
    }
    let other = number(rest, 1)?;
    match kind {
        JOINED => Some(format!("user {user} in group {other} = {}", of::<JoinedRecord>(value))),
        MEMBER => Some(format!("group {group} member {other} = {}", of::<MemberRecord>(value))),
        kind if kind == OfPair::Friend as u8 => {
            Some(format!("user {user} and user {other} = {}", of::<FriendRecord>(value)))
        }
        kind if kind == OfPair::Block as u8 => {
            Some(format!("user {user} blocks user {other} = {}", of::<BlockRecord>(value)))
        }
        kind if kind == OfPair::Counts as u8 => Some(format!("user {user} = {}", of::<SocialCounts>(value))),
        _ => None,
    }
}

fn event(key: &[u8], value: &[u8]) -> Option<String> {
    let (&kind, rest) = key.split_first()?;
    let first = number(rest, 0)?;
    match kind {
        EVENT => Some(format!("event {first:016x} = {}", of::<EventRecord>(value))),
        EVENT_ONLINE => {
            Some(format!("user {first} device {} = {}", number(rest, 1)?, of::<OnlineRecord>(value)))
        }
        EVENT_LAST_SEEN => Some(format!("user {first} = {}", of::<LastSeen>(value))),
        _ => None,
    }
}

fn device(key: &[u8], value: &[u8]) -> Option<String> {
    let (&kind, rest) = key.split_first()?;
    if kind == DEVICE_OWNER {
        return Some(format!("owner of device {} = {}", number(rest, 0)?, of::<Owner>(value)));
    }
    let (user, device) = (number(rest, 0)?, number(rest, 1)?);
    let text = match kind {
        kind if kind == OfDevice::Record as u8 => of::<DeviceRecord>(value),
        kind if kind == OfDevice::Token as u8 => of::<TokenRecord>(value),
        kind if kind == OfDevice::Ack as u8 => of::<AckRecord>(value),
        _ => return None,
    };
    Some(format!("user {user} device {device} = {text}"))
}

fn dedup(key: &[u8], value: &[u8]) -> Option<String> {
    let (user, device, id) = (number(key, 0)?, number(key, 1)?, number(key, 2)?);
    let text = if id == 0 { of::<DedupHead>(value) } else { of::<DedupEntry>(value) };
    Some(format!("user {user} device {device} client message {id} = {text}"))
}

fn idem(key: &[u8], value: &[u8]) -> Option<String> {
    match key.split_first()? {
        (&IDEM_ENTRY, rest) => {
            Some(format!("key {} = {}", String::from_utf8_lossy(rest), of::<IdemEntry>(value)))
        }
        (&IDEM_EXPIRY, rest) => {
            let text = String::from_utf8_lossy(key.get(IDEM_EXPIRY_PREFIX_BYTES - 2..)?).into_owned();
            Some(format!("key {text} expires at {} ms", number(rest, 0)?))
        }
        _ => None,
    }
}

fn mailbox(key: &[u8], value: &[u8]) -> Option<String> {
    let (user, seq) = (number(key, 0)?, number(key, 1)?);
    let text = match (seq, Entry::from_bytes(value)) {
        (0, _) => of::<MailboxHead>(value),
        (_, Ok(Entry::Inline(body))) => without_content(&body),
        _ => of::<Entry>(value),
    };
    Some(format!("user {user} seq {seq} = {text}"))
}

fn message(key: &[u8], value: &[u8]) -> Option<String> {
    if let (Some(group), Some(seq)) = (number(key, 0), number(key, 1)) {
        let text = match GroupMessage::from_bytes(value) {
            Ok(GroupMessage(body)) => without_content(&body),
            Err(error) => error.to_string(),
        };
        return Some(format!("group {group} seq {seq} = {text}"));
    }
    let text = match SharedBody::from_bytes(value) {
        Ok(shared) => format!("{} references, {}", shared.references, without_content(&shared.body)),
        Err(error) => error.to_string(),
    };
    Some(format!("message {} = {text}", number(key, 0)?))
}

fn without_content(body: &gimbal_rpc::link::Body) -> String {
    let mut text =
        format!("message {} from user {} device {}", body.message_id, body.from_user, body.from_device);
    let _ = write!(
        text,
        ", command {}, {} bytes, at {} ms",
        body.command,
        body.content.len(),
        body.created_at_ms
    );
    text
}

fn of<V: Value + Debug>(value: &[u8]) -> String {
    match V::from_bytes(value) {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("not understood: {error}: {}", hex::encode(value)),
    }
}

/// The `at`-th eight bytes.
fn number(key: &[u8], at: usize) -> Option<u64> {
    let bytes = key.get(8 * at..8 * at + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().expect("eight bytes were taken")))
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{DeviceId, Seq, UserId};

    use super::*;
    use crate::partition::Partition;
    use crate::store::key;

    #[test]
    fn keys_and_values_are_told_in_one_line_and_damage_is_said() {
        let user = UserId::new(10_000);
        let home = Partition::of_user(user).get();
        let head = MailboxHead { next: Seq::new(8), trimmed_to: Seq::new(2) };
        let line = describe(Table::Mailbox, &key::mailbox(user, Seq::new(0)), &head.to_bytes());
        let value = "MailboxHead { next: Seq(8), trimmed_to: Seq(2) }";
        assert_eq!(line, format!("mailbox/{home:04} user 10000 seq 0 = {value}"));
        let line = describe(Table::Account, &key::subject("iss", "anna"), &Owner { user }.to_bytes());
        assert!(line.ends_with("subject anna of iss = Owner { user: UserId(10000) }"), "{line}");
        let ack = OfDevice::Ack.key(user, DeviceId::new(10_001));
        let line = describe(Table::Device, &ack, &[77]);
        assert!(
            line.contains("user 10000 device 10001 = not understood: stored ack: unknown form"),
            "{line}"
        );
        let line = describe(Table::Idem, &key::idem_expiry(Partition::META, 5, "k1"), &[]);
        assert_eq!(line, "idem/0000 key k1 expires at 5 ms");
        assert!(describe(Table::Event, &[0, 0, 9], &[1]).contains("000009 = 01"));
        assert!(describe(Table::Meta, &[], &[]).contains("not understood"));
    }
}
