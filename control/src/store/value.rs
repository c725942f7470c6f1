//! Versioned values. The first byte of each says which form follows; one that this version does not know is an error.
//! Numbers are unsigned LEB128 varints, signed ones zigzag first; texts and bytes carry their length before them.

mod event;
mod group;
mod idem;
mod reader;
mod social;

use bytes::Bytes;
use gimbal_codec::{Attach, ClientMessageId, DeviceId, GroupId, MessageId, Seq, UserId};
use gimbal_rpc::link::Body;

use crate::command::{DeviceInfo, NewToken, TokenHash};
pub use event::{EventKind, EventRecord, LastSeen, OnlineRecord};
pub use group::{GroupMessage, GroupRecord, MemberRecord, Role, Verdict};
pub use idem::{IdemEntry, IdemResult};
use reader::unzigzag;
pub use reader::{CorruptValue, Reader};
pub use social::{FriendRecord, Friendship, NameEntry, ProfileRecord};

/// A value with a stored form.
pub trait Value: Sized {
    /// For error texts.
    const WHAT: &'static str;

    /// Appends the stored form.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads what [`Self::put`] wrote, from the form byte on.
    ///
    /// # Errors
    /// [`CorruptValue`].
    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue>;

    /// The stored form.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        self.put(&mut out);
        out
    }

    /// From the whole stored form; bytes left over are an error.
    ///
    /// # Errors
    /// [`CorruptValue`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, CorruptValue> {
        let mut reader = Reader::new(Self::WHAT, bytes);
        let value = Self::read(&mut reader)?;
        if reader.is_empty() { Ok(value) } else { Err(reader.corrupt("bytes left over")) }
    }
}

/// Appends an unsigned varint: 1 to 10 bytes.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The only form of most values so far.
const FORM_1: u8 = 1;
/// With what was added since.
const FORM_2: u8 = 2;
/// And with what was added since then.
const FORM_3: u8 = 3;

/// Values that are one form byte and unsigned varints.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident ($what:literal) { $($(#[$field_doc:meta])* $field:ident: $type:ty = $wrap:expr, $get:expr;)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Value for $name {
            const WHAT: &'static str = $what;

            fn put(&self, out: &mut Vec<u8>) {
                out.push(FORM_1);
                $(put_varint(out, $get(self.$field));)*
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
                reader.form(FORM_1)?;
                Ok(Self { $($field: $wrap(reader.varint()?),)* })
            }
        }
    )*};
}

fn same(value: u64) -> u64 {
    value
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

numbers! {
    /// A number of `meta`.
    MetaNumber("meta number") {
        /// Its value.
        value: u64 = same, same;
    }
    /// Which user a phone number or a device belongs to.
    Owner("owner") {
        /// That user.
        user: UserId = UserId::new, UserId::get;
    }
    /// What a device has processed.
    AckRecord("ack") {
        /// Everything up to here.
        seq: Seq = Seq::new, Seq::get;
    }
    /// Since when a user's tokens count.
    NotBefore("not-before") {
        /// Tokens issued before this open nothing; Unix milliseconds.
        before_ms: i64 = unzigzag, zigzag;
        /// Sessions with a smaller attach number may have begun with one of those.
        since: Attach = Attach::new, Attach::get;
    }
    /// How many a user knows.
    SocialCounts("social counts") {
        /// Friends, and those who asked or were asked.
        friends: u64 = same, same;
        /// Blocked users.
        blocked: u64 = same, same;
    }
    /// A user that another one blocks.
    BlockRecord("block") {
        /// Unix milliseconds.
        since_ms: i64 = unzigzag, zigzag;
    }
    /// Where a group stands.
    GroupHead("group head") {
        /// The place that the next message gets in the group's order; at least 1.
        next: Seq = Seq::new, Seq::get;
        /// Members.
        members: u64 = same, same;
    }
    /// A group whose messages are on their way; it exists as long as there is one.
    FanOutRecord("fan-out") {
        /// The message that is given out now; those before it have reached all who get them.
        seq: Seq = Seq::new, Seq::get;
        /// Members up to this one have it, by rising user id.
        after: UserId = UserId::new, UserId::get;
    }
    /// A group that a user is in.
    JoinedRecord("joined group") {
        /// Unix milliseconds.
        since_ms: i64 = unzigzag, zigzag;
    }
    /// How many groups a user is in.
    GroupCount("group count") {
        /// Groups.
        groups: u64 = same, same;
    }
    /// Where a mailbox stands. It exists from the moment its user does.
    MailboxHead("mailbox head") {
        /// The seq that the next message gets; at least 1.
        next: Seq = Seq::new, Seq::get;
        /// Messages up to here are no longer kept; below `next`.
        trimmed_to: Seq = Seq::new, Seq::get;
    }
    /// The window of remembered client message ids.
    DedupHead("dedup head") {
        /// Ids up to here are refused as too old.
        floor: ClientMessageId = ClientMessageId::new, ClientMessageId::get;
        /// Ids above are new without a look.
        highest: ClientMessageId = ClientMessageId::new, ClientMessageId::get;
        /// Entries kept.
        count: u64 = same, same;
    }
    /// The first answer to a send.
    DedupEntry("dedup entry") {
        /// Fingerprint of recipient, command and content.
        fingerprint: u64 = same, same;
        /// Stored message.
        message_id: MessageId = MessageId::new, MessageId::get;
        /// Its place in the recipient's mailbox.
        seq: Seq = Seq::new, Seq::get;
        /// Unix milliseconds.
        created_at_ms: i64 = unzigzag, zigzag;
    }
}

impl MailboxHead {
    /// Of a mailbox without a message.
    pub const EMPTY: Self = Self { next: Seq::new(1), trimmed_to: Seq::new(0) };

    /// Seq of the newest message; 0 when there never was one.
    pub const fn latest(&self) -> Seq {
        Seq::new(self.next.get().saturating_sub(1))
    }
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserRecord {
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Empty: made by the backend.
    pub phone: String,
}

impl Value for UserRecord {
    const WHAT: &'static str = "user";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_signed(out, self.created_at_ms);
        put_bytes(out, self.phone.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self { created_at_ms: reader.signed()?, phone: reader.text()? })
    }
}

/// What a device says of itself; its id is in the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRecord {
    /// Unix milliseconds: when it was made for this user.
    pub created_at_ms: i64,
    /// `id` is always `None`.
    pub info: DeviceInfo,
}

impl Value for DeviceRecord {
    const WHAT: &'static str = "device";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_signed(out, self.created_at_ms);
        put_signed(out, i64::from(self.info.kind));
        let DeviceInfo { brand, model, system_version, sdk_version, push_token, .. } = &self.info;
        for text in [brand, model, system_version, sdk_version, push_token] {
            put_bytes(out, text.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self {
            created_at_ms: reader.signed()?,
            info: DeviceInfo {
                id: None,
                kind: reader.i32()?,
                brand: reader.text()?,
                model: reader.text()?,
                system_version: reader.text()?,
                sdk_version: reader.text()?,
                push_token: reader.text()?,
            },
        })
    }
}

/// A device's token. It exists as long as the device is registered for that user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenRecord {
    /// Rises with every token of this registration, from 1.
    pub generation: u64,
    /// Sessions with a smaller attach number began under an earlier token (form 1 has none: 0).
    pub since: Attach,
    /// `None`: revoked, or there never was one of ours.
    pub token: Option<NewToken>,
    /// When `token` was issued, Unix milliseconds (forms 1 and 2: 0).
    pub issued_at_ms: i64,
    /// Somebody else has vouched for this device (forms 1 and 2: false).
    pub vouched: bool,
    /// What others issued for this device before this time opens nothing, Unix milliseconds (forms 1 and 2: 0).
    pub not_before_ms: i64,
}

impl TokenRecord {
    /// Of a device without a token of ours.
    pub const NONE: Self = Self {
        generation: 0,
        since: Attach::new(0),
        token: None,
        issued_at_ms: 0,
        vouched: false,
        not_before_ms: 0,
    };
}

impl Value for TokenRecord {
    const WHAT: &'static str = "token";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_3);
        put_varint(out, self.generation);
        put_varint(out, self.since.get());
        put_signed(out, self.issued_at_ms);
        out.push(u8::from(self.vouched));
        put_signed(out, self.not_before_ms);
        out.push(u8::from(self.token.is_some()));
        if let Some(token) = self.token {
            out.extend_from_slice(token.hash.as_bytes());
            put_signed(out, token.expires_at_ms);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        let form = reader.u8()?;
        if !(FORM_1..=FORM_3).contains(&form) {
            return Err(reader.corrupt("unknown form"));
        }
        let mut record = Self { generation: reader.varint()?, ..Self::NONE };
        if form >= FORM_2 {
            record.since = Attach::new(reader.varint()?);
        }
        if form >= FORM_3 {
            record.issued_at_ms = reader.signed()?;
            record.vouched = reader.flag()?;
            record.not_before_ms = reader.signed()?;
        }
        if reader.flag()? {
            let mut hash = [0; 32];
            hash.copy_from_slice(reader.take(32)?);
            let hash = TokenHash::from_bytes(hash);
            record.token = Some(NewToken { hash, expires_at_ms: reader.signed()? });
        }
        Ok(record)
    }
}

/// A message in a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// With its body.
    Inline(Body),
    /// Its body is in `message`, in the same partition.
    Shared(MessageId),
    /// Its body is in `message`, in the group's partition, at this place in the group's order.
    Group(GroupId, Seq),
}

const ENTRY_INLINE: u8 = 1;
const ENTRY_SHARED: u8 = 2;
const ENTRY_GROUP: u8 = 3;

impl Entry {
    /// As [`Value::put`] of [`Entry::Inline`], without owning the body.
    pub fn put_inline(body: &Body, out: &mut Vec<u8>) {
        out.push(ENTRY_INLINE);
        put_body(body, out);
    }
}

impl Value for Entry {
    const WHAT: &'static str = "mailbox entry";

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Inline(body) => Self::put_inline(body, out),
            Self::Shared(id) => {
                out.push(ENTRY_SHARED);
                put_varint(out, id.get());
            }
            Self::Group(group, seq) => {
                out.push(ENTRY_GROUP);
                put_varint(out, group.get());
                put_varint(out, seq.get());
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        match reader.u8()? {
            ENTRY_INLINE => Ok(Self::Inline(read_body(reader)?)),
            ENTRY_SHARED => Ok(Self::Shared(MessageId::new(reader.varint()?))),
            ENTRY_GROUP => Ok(Self::Group(GroupId::new(reader.varint()?), Seq::new(reader.varint()?))),
            _ => Err(reader.corrupt("unknown form")),
        }
    }
}

/// A body that several mailboxes of one partition point at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedBody {
    /// Entries that point here; trimming the last one removes it.
    pub references: u64,
    /// The body.
    pub body: Body,
}

impl Value for SharedBody {
    const WHAT: &'static str = "shared body";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_varint(out, self.references);
        put_body(&self.body, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self { references: reader.varint()?, body: read_body(reader)? })
    }
}

/// Without its group, which is where it is found.
fn put_body(body: &Body, out: &mut Vec<u8>) {
    put_varint(out, body.message_id.get());
    put_varint(out, body.from_user.get());
    put_varint(out, body.from_device.get());
    put_signed(out, i64::from(body.command));
    put_signed(out, body.created_at_ms);
    put_bytes(out, &body.content);
}

fn read_body(reader: &mut Reader<'_>) -> Result<Body, CorruptValue> {
    Ok(Body {
        message_id: MessageId::new(reader.varint()?),
        from_user: UserId::new(reader.varint()?),
        from_device: DeviceId::new(reader.varint()?),
        command: reader.i32()?,
        created_at_ms: reader.signed()?,
        content: Bytes::copy_from_slice(reader.bytes()?),
        ..Body::default()
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;
    use crate::command::Registered;

    fn comes_back<V: Value + PartialEq + Debug>(value: &V) {
        let bytes = value.to_bytes();
        assert_eq!(V::from_bytes(&bytes).as_ref(), Ok(value));
        for cut in 0..bytes.len() {
            assert!(V::from_bytes(&bytes[..cut]).is_err(), "a cut value is an error");
        }
        let mut unknown = bytes.clone();
        unknown[0] = 250;
        assert!(V::from_bytes(&unknown).is_err(), "an unknown form is an error");
        let longer = [&bytes[..], &[0]].concat();
        assert!(V::from_bytes(&longer).is_err(), "bytes left over are an error");
    }

    fn body(content: Vec<u8>, number: u64) -> Body {
        Body {
            message_id: MessageId::new(number),
            from_user: UserId::new(number / 2),
            from_device: DeviceId::new(number / 3),
            command: number as i32,
            content: content.into(),
            created_at_ms: number as i64,
            ..Body::default()
        }
    }

    proptest! {
        #[test]
        fn every_value_comes_back_and_no_damage_is_accepted_in_silence(
            number: u64, signed: i64, kind: i32, text in ".{0,20}", hash: [u8; 32],
            content in proptest::collection::vec(any::<u8>(), 0..50), flag: bool,
        ) {
            let (user, name) = (UserId::new(number), text.clone());
            comes_back(&MetaNumber { value: number });
            comes_back(&MailboxHead { next: Seq::new(number), trimmed_to: Seq::new(number / 7) });
            comes_back(&DedupHead {
                floor: ClientMessageId::new(number / 2), highest: ClientMessageId::new(number), count: 3,
            });
            comes_back(&DedupEntry {
                fingerprint: number, message_id: MessageId::new(number), seq: Seq::new(1), created_at_ms: signed,
            });
            comes_back(&UserRecord { created_at_ms: signed, phone: text.clone() });
            let info = DeviceInfo { kind, brand: text.clone(), push_token: text, ..DeviceInfo::default() };
            comes_back(&DeviceRecord { created_at_ms: signed, info });
            let token = NewToken { hash: TokenHash::from_bytes(hash), expires_at_ms: signed };
            let since = Attach::new(number / 3);
            comes_back(&TokenRecord {
                generation: number, since, token: flag.then_some(token), issued_at_ms: signed, vouched: !flag,
                not_before_ms: signed / 3,
            });
            comes_back(&NotBefore { before_ms: signed, since });
            for result in [
                IdemResult::Registered(Registered { is_new: flag, user, device: DeviceId::new(9) }),
                IdemResult::Revoked(flag),
                IdemResult::RevokedBefore { before_ms: signed, devices: kind as u32 },
                IdemResult::Pushed(MessageId::new(number), vec![Seq::new(0), Seq::new(number)]),
                IdemResult::Members(GroupId::new(number), vec![Verdict::Done, Verdict::Damaged]),
                IdemResult::Sent {
                    message_id: MessageId::new(number), seq: Seq::new(number / 2), created_at_ms: signed,
                },
            ] {
                comes_back(&IdemEntry { fingerprint: number, expires_at_ms: signed, result });
            }
            comes_back(&Entry::Inline(body(content.clone(), number)));
            comes_back(&Entry::Shared(MessageId::new(number)));
            comes_back(&Entry::Group(GroupId::new(number), Seq::new(number / 2)));
            comes_back(&GroupMessage(body(content.clone(), number)));
            comes_back(&GroupRecord {
                created_at_ms: signed, updated_at_ms: signed / 2, owner: user, muted: flag, dissolved: !flag,
                name: name.clone(), avatar_url: String::new(), introduction: name.clone(), extra: name.clone(),
            });
            for role in [Role::Member, Role::Admin, Role::Owner] {
                comes_back(&MemberRecord {
                    role, joined_at_ms: signed, since: Seq::new(number), muted_until_ms: signed / 5,
                    nickname: name.clone(), extra: String::new(),
                });
            }
            comes_back(&GroupHead { next: Seq::new(number), members: number / 3 });
            comes_back(&FanOutRecord { seq: Seq::new(number), after: user });
            comes_back(&SharedBody { references: 2, body: body(content, number) });
        }

        #[test]
        fn tokens_of_earlier_forms_are_read(generation in 1..100_u8, flag: bool) {
            let mut first = vec![1, generation, u8::from(flag)];
            let token = NewToken { hash: TokenHash::from_bytes([7; 32]), expires_at_ms: -1 };
            if flag {
                first.extend([7; 32]);
                first.push(1);
            }
            let token = flag.then_some(token);
            let record = TokenRecord { generation: generation.into(), token, ..TokenRecord::NONE };
            assert_eq!(TokenRecord::from_bytes(&first), Ok(record));
            // The second has the attach number after the generation.
            let second = [&[2, generation, 9], &first[2..]].concat();
            assert_eq!(TokenRecord::from_bytes(&second), Ok(TokenRecord { since: Attach::new(9), ..record }));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Entry::from_bytes(&bytes);
            let _ = IdemEntry::from_bytes(&bytes);
            let _ = TokenRecord::from_bytes(&bytes);
            let _ = DeviceRecord::from_bytes(&bytes);
        }
    }
}
