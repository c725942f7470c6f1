//! First answers to writes with an idempotency key.

use gimbal_codec::{DeviceId, GroupId, MessageId, Seq, UserId};

use super::{CorruptValue, FORM_1, Friendship, Reader, Value, Verdict, put_signed, put_varint};
use crate::command::Registered;

/// The first answer to a write with an idempotency key; never holds a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdemEntry {
    /// Fingerprint of the method and all it was given but secrets.
    pub fingerprint: u64,
    /// Unix milliseconds.
    pub expires_at_ms: i64,
    /// The answer.
    pub result: IdemResult,
}

/// What is remembered of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IdemResult {
    /// Of a registration: ids, no token.
    Registered(Registered),
    /// Of a revocation.
    Revoked(bool),
    /// Of a revocation by time.
    RevokedBefore {
        /// What counts since, Unix milliseconds.
        before_ms: i64,
        /// Tokens of ours that were ended.
        devices: u32,
    },
    /// Of a push: the seq of each user in the order of the request; 0: no such user.
    Pushed(MessageId, Vec<Seq>),
    /// Of an act without an answer of its own.
    Done,
    /// Of a request for friendship.
    Friendship(Friendship),
    /// Of a change of a group's members: what became of each in the order of the request.
    Members(GroupId, Vec<Verdict>),
    /// Of a message to a group.
    Sent {
        /// Its id.
        message_id: MessageId,
        /// Its place in the group's order.
        seq: Seq,
        /// Unix milliseconds.
        created_at_ms: i64,
    },
}

impl Value for IdemEntry {
    const WHAT: &'static str = "idempotency entry";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_varint(out, self.fingerprint);
        put_signed(out, self.expires_at_ms);
        match &self.result {
            IdemResult::Registered(registered) => {
                out.extend_from_slice(&[1, u8::from(registered.is_new)]);
                put_varint(out, registered.user.get());
                put_varint(out, registered.device.get());
            }
            IdemResult::Revoked(revoked) => out.extend_from_slice(&[2, u8::from(*revoked)]),
            IdemResult::RevokedBefore { before_ms, devices } => {
                out.push(4);
                put_signed(out, *before_ms);
                put_varint(out, u64::from(*devices));
            }
            IdemResult::Done => out.push(5),
            IdemResult::Friendship(friendship) => out.extend_from_slice(&[6, *friendship as u8]),
            IdemResult::Members(group, verdicts) => {
                out.push(7);
                put_varint(out, group.get());
                put_varint(out, verdicts.len() as u64);
                out.extend(verdicts.iter().map(|verdict| *verdict as u8));
            }
            IdemResult::Sent { message_id, seq, created_at_ms } => {
                out.push(8);
                put_varint(out, message_id.get());
                put_varint(out, seq.get());
                put_signed(out, *created_at_ms);
            }
            IdemResult::Pushed(id, seqs) => {
                out.push(3);
                put_varint(out, id.get());
                put_varint(out, seqs.len() as u64);
                seqs.iter().for_each(|seq| put_varint(out, seq.get()));
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        let fingerprint = reader.varint()?;
        let expires_at_ms = reader.signed()?;
        let result = match reader.u8()? {
            1 => IdemResult::Registered(Registered {
                is_new: reader.flag()?,
                user: UserId::new(reader.varint()?),
                device: DeviceId::new(reader.varint()?),
            }),
            2 => IdemResult::Revoked(reader.flag()?),
            3 => {
                let id = MessageId::new(reader.varint()?);
                let count = reader.varint()?;
                let seqs = (0..count).map(|_| reader.varint().map(Seq::new)).collect::<Result<_, _>>()?;
                IdemResult::Pushed(id, seqs)
            }
            4 => IdemResult::RevokedBefore {
                before_ms: reader.signed()?,
                devices: u32::try_from(reader.varint()?).map_err(|_| reader.corrupt("too many devices"))?,
            },
            5 => IdemResult::Done,
            6 => IdemResult::Friendship(Friendship::read(reader)?),
            7 => {
                let group = GroupId::new(reader.varint()?);
                let count = reader.varint()?;
                let verdicts = (0..count).map(|_| Verdict::read(reader)).collect::<Result<_, _>>()?;
                IdemResult::Members(group, verdicts)
            }
            8 => IdemResult::Sent {
                message_id: MessageId::new(reader.varint()?),
                seq: Seq::new(reader.varint()?),
                created_at_ms: reader.signed()?,
            },
            _ => return Err(reader.corrupt("unknown result")),
        };
        Ok(Self { fingerprint, expires_at_ms, result })
    }
}
