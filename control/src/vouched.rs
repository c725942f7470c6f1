//! Callers for whom somebody else vouches, and the end of tokens by time: rules only.
//!
//! A user and a device are made at first sight, in the batch of the command that brought them.

use gimbal_codec::{Attach, CloseReason, DeviceId, Seq, UserId};

use crate::auth::Subject;
use crate::command::{Admitted, DeviceInfo, IdempotencyKey, Reply, Vouched};
use crate::dedup::Fingerprint;
use crate::error::RequestError;
use crate::event::Act;
use crate::executor::{Batch, Effect, Output};
use crate::idempotency;
use crate::store::key::{self, Meta, OfDevice};
use crate::store::value::{
    DeviceRecord, IdemResult, MailboxHead, NotBefore, Owner, TokenRecord, UserRecord, Value as _,
};
use crate::store::{Scan, StoreError, Table};

/// Kind of fingerprint; part of the disk format.
const OF_REVOCATION_BY_TIME: u64 = 5;

/// A device that nobody vouches for has an id from here on: smaller ones are ours to give, so that nobody can take them
/// before their owner comes.
pub(crate) const CHOSEN_DEVICE_MIN: u64 = 1 << 32;
/// Devices of one user made at first sight; the oldest gives way. Who has a token can make no more of them than this.
pub(crate) const SEEN_DEVICES_MAX: usize = 256;

/// What is known of a caller before anything is written.
struct Found {
    user: UserId,
    /// The user is to be made.
    is_new: bool,
    latest: Seq,
    device: Place,
}

enum Place {
    /// Nothing is to be written.
    Known,
    /// The user's, but nobody has vouched for it so far.
    Unseen(TokenRecord),
    /// To be made; another one gives way.
    New(Option<DeviceId>),
}

impl Batch<'_> {
    /// Lets a caller in that is vouched for, and gives whose session it is.
    pub(crate) fn admit_vouched(&mut self, vouched: &Vouched) -> Result<Output, RequestError> {
        let found = self.find_vouched(vouched)?;
        let effect = self.see(&found, vouched);
        let admitted = Admitted {
            user: found.user,
            device: vouched.device,
            latest: found.latest,
            issued_at_ms: vouched.issued_at_ms,
            expires_at_ms: vouched.expires_at_ms,
        };
        Ok(Output { result: Ok(Reply::Admitted(admitted)), effect })
    }

    /// Reads only.
    fn find_vouched(&mut self, vouched: &Vouched) -> Result<Found, RequestError> {
        // Time has passed since the check, and may have jumped.
        if self.now_ms >= vouched.expires_at_ms {
            return Err(RequestError::NotSignedIn);
        }
        let (user, head) = self.find_subject(&vouched.subject)?;
        if !vouched.claimed.is_none() && vouched.claimed != user {
            return Err(RequestError::NotSignedIn);
        }
        if vouched.issued_at_ms < self.not_before(user)?.before_ms {
            return Err(RequestError::NotSignedIn);
        }
        let device = self.find_device(user, vouched)?;
        let latest = head.unwrap_or(MailboxHead::EMPTY).latest();
        Ok(Found { user, is_new: head.is_none(), latest, device })
    }

    /// The user, and its mailbox unless both are to be made.
    fn find_subject(&mut self, subject: &Subject) -> Result<(UserId, Option<MailboxHead>), RequestError> {
        match subject {
            Subject::Id(user) => Ok((*user, self.peek_head(*user)?)),
            Subject::Name { issuer, name } => {
                let known = self.overlay.value::<Owner>(Table::Account, &key::subject(issuer, name))?;
                match known {
                    Some(Owner { user }) => {
                        let head = self.peek_head(user)?.ok_or(RequestError::NotSignedIn)?;
                        Ok((user, Some(head)))
                    }
                    None => Ok((UserId::new(self.peek_id(Meta::NextUser)?), None)),
                }
            }
        }
    }

    fn find_device(&self, user: UserId, vouched: &Vouched) -> Result<Place, RequestError> {
        let device = vouched.device;
        if device.is_none() || device.get() > i64::MAX as u64 {
            return Err(RequestError::DeviceNotFound);
        }
        match self.overlay.value::<Owner>(Table::Device, &key::device_owner(device))? {
            Some(owner) if owner.user != user => Err(RequestError::NotSignedIn),
            Some(_) => {
                let record = self.token(user, device)?.ok_or(RequestError::NotSignedIn)?;
                if vouched.issued_at_ms < record.not_before_ms {
                    Err(RequestError::NotSignedIn)
                } else if record.vouched {
                    Ok(Place::Known)
                } else {
                    Ok(Place::Unseen(record))
                }
            }
            None if !vouched.is_device_vouched && device.get() < CHOSEN_DEVICE_MIN => {
                Err(RequestError::DeviceNotFound)
            }
            None => Ok(Place::New(self.oldest_seen(user)?)),
        }
    }

    /// The user's oldest device that was made at first sight, when there are as many as may be.
    fn oldest_seen(&self, user: UserId) -> Result<Option<DeviceId>, StoreError> {
        let mut seen: Vec<(Attach, DeviceId)> = Vec::new();
        self.for_each_token(user, |device, record| {
            if record.vouched && record.token.is_none() {
                seen.push((record.since, device));
            }
        })?;
        seen.sort_unstable();
        Ok(if seen.len() < SEEN_DEVICES_MAX { None } else { seen.first().map(|(_, device)| *device) })
    }

    /// As it is in this batch, of devices that were committed before it.
    fn for_each_token(
        &self,
        user: UserId,
        mut each: impl FnMut(DeviceId, TokenRecord),
    ) -> Result<(), StoreError> {
        let from = OfDevice::Token.key(user, DeviceId::new(0));
        let to = OfDevice::Token.key(user, DeviceId::new(u64::MAX));
        self.overlay.view().scan(Table::Device, &from, &to, &mut |at, stored| {
            let now = match self.overlay.change(Table::Device, at) {
                None => Some(stored),
                Some(changed) => changed,
            };
            if let (Some(device), Some(bytes)) = (key::device_of(at), now) {
                each(device, TokenRecord::from_bytes(bytes)?);
            }
            Ok(Scan::Continue)
        })?;
        Ok(())
    }

    /// Writes only.
    fn see(&mut self, found: &Found, vouched: &Vouched) -> Effect {
        let (user, device) = (found.user, vouched.device);
        if found.is_new {
            self.make_seen_user(user, &vouched.subject);
        }
        let token_key = OfDevice::Token.key(user, device);
        match &found.device {
            Place::Known => Effect::None,
            Place::Unseen(record) => {
                let record = TokenRecord { vouched: true, ..*record };
                self.overlay.put(Table::Device, &token_key, record.to_bytes());
                Effect::None
            }
            Place::New(gives_way) => {
                let record = DeviceRecord { created_at_ms: self.now_ms, info: DeviceInfo::default() };
                self.overlay.put(Table::Device, &OfDevice::Record.key(user, device), record.to_bytes());
                let token = TokenRecord { since: self.next_attach, vouched: true, ..TokenRecord::NONE };
                self.overlay.put(Table::Device, &token_key, token.to_bytes());
                self.overlay.put(Table::Device, &key::device_owner(device), Owner { user }.to_bytes());
                gives_way.map_or(Effect::None, |oldest| self.forget_device(user, oldest))
            }
        }
    }

    fn make_seen_user(&mut self, user: UserId, subject: &Subject) {
        if let Subject::Name { issuer, name } = subject {
            self.take_id(Meta::NextUser, user.get());
            let owner = Owner { user }.to_bytes();
            self.overlay.put(Table::Account, &key::subject(issuer, name), owner);
        }
        let record = UserRecord { created_at_ms: self.now_ms, phone: String::new() };
        self.overlay.put(Table::Account, &key::user(user), record.to_bytes());
        self.note_act(Act::UserMade, user, DeviceId::default(), UserId::default());
        self.set_head(user, MailboxHead::EMPTY);
    }

    pub(crate) fn forget_device(&mut self, user: UserId, device: DeviceId) -> Effect {
        for kind in [OfDevice::Record, OfDevice::Token, OfDevice::Ack] {
            self.overlay.delete(Table::Device, &kind.key(user, device));
        }
        self.overlay.delete(Table::Device, &key::device_owner(device));
        Effect::Kick { user, device, reason: CloseReason::TokenRevoked }
    }

    /// What counts for a user's tokens; of one that nobody has revoked, everything does.
    pub(crate) fn not_before(&self, user: UserId) -> Result<NotBefore, StoreError> {
        let stored = self.overlay.value::<NotBefore>(Table::Account, &key::not_before(user))?;
        Ok(stored.unwrap_or(NotBefore { before_ms: 0, since: Attach::default() }))
    }

    /// Ends all tokens of a user that were issued before `before_ms` (0: now), whoever issued them.
    pub(crate) fn revoke_tokens(
        &mut self,
        user: UserId,
        before_ms: i64,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        if before_ms < 0 || before_ms > self.now_ms {
            let rule = "must be a time in the past, or 0 for now";
            return Err(RequestError::BadRequest { field: "before_ms", rule });
        }
        let fingerprint =
            Fingerprint::new(OF_REVOCATION_BY_TIME).number(user.get()).number(before_ms as u64).finish();
        let mut plan = None;
        if let Some(wanted) = idempotency {
            match idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                Some(IdemResult::RevokedBefore { before_ms, devices }) => {
                    let result = Ok(Reply::RevokedBefore { before_ms, devices });
                    return Ok(Output { result, effect: Effect::None });
                }
                Some(_) => return Err(RequestError::Conflict),
                None => plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?)),
            }
        }
        if self.peek_head(user)?.is_none() {
            return Err(RequestError::UserNotFound);
        }
        let known = self.not_before(user)?;
        let wanted_ms = if before_ms == 0 { self.now_ms } else { before_ms };
        let before_ms = wanted_ms.max(known.before_ms);
        let mut ended = Vec::new();
        self.for_each_token(user, |device, record| {
            if record.token.is_some_and(|_| record.issued_at_ms < before_ms) {
                ended.push((device, record));
            }
        })?;
        let devices = u32::try_from(ended.len()).unwrap_or(u32::MAX);
        for (device, record) in ended {
            let value = TokenRecord { token: None, ..record }.to_bytes();
            self.overlay.put(Table::Device, &OfDevice::Token.key(user, device), value);
        }
        let value = NotBefore { before_ms, since: self.next_attach };
        self.overlay.put(Table::Account, &key::not_before(user), value.to_bytes());
        self.note_act(Act::TokensRevoked, user, DeviceId::default(), UserId::default());
        if let Some((wanted, plan)) = plan {
            let result = IdemResult::RevokedBefore { before_ms, devices };
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        let effect = Effect::KickOlder { user, before_ms, reason: CloseReason::TokenRevoked };
        Ok(Output { result: Ok(Reply::RevokedBefore { before_ms, devices }), effect })
    }
}
