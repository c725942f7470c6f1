//! Registration and credentials: rules only.

use gimbal_codec::{Attach, CloseReason, DeviceId, UserId};

use crate::command::{
    DEVICE_TEXT_BYTES_MAX, DeviceInfo, IdempotencyKey, NewToken, PHONE_BYTES_MAX, Registered, Reply,
    TokenHash,
};
use crate::dedup::Fingerprint;
use crate::error::RequestError;
use crate::event::Act;
use crate::executor::{Batch, Effect, Output};
use crate::idempotency;
use crate::sign_in;
use crate::store::Table;
use crate::store::key::{self, Meta, OfDevice};
use crate::store::value::{
    DeviceRecord, IdemResult, MailboxHead, Owner, TokenRecord, UserRecord, Value as _,
};

/// Kinds of fingerprints; part of the disk format.
const OF_REGISTRATION: u64 = 3;
const OF_REVOCATION: u64 = 4;

/// Which user a registration is for.
enum Subject<'a> {
    Known(UserId),
    /// To be made, with this phone number (empty: none).
    New(UserId, &'a str),
}

/// Which device a registration is for.
enum Place {
    /// To be made.
    New(DeviceId),
    /// The user's already, with this token, made then.
    Kept(DeviceId, TokenRecord, i64),
    /// From that user.
    Moved(DeviceId, UserId),
}

impl Place {
    const fn device(&self) -> DeviceId {
        match self {
            Self::New(device) | Self::Kept(device, ..) | Self::Moved(device, _) => *device,
        }
    }
}

/// Who asks for a device that is another user's.
#[derive(Clone, Copy)]
enum Trust {
    /// The backend.
    Full,
    /// A caller who showed this token, or none.
    Shown(Option<TokenHash>),
}

impl Batch<'_> {
    pub(crate) fn sign_in(
        &mut self,
        phone: &str,
        info: &DeviceInfo,
        token: NewToken,
        holds: Option<TokenHash>,
    ) -> Result<Output, RequestError> {
        check_phone(phone)?;
        check_info(info)?;
        let subject = match self.overlay.value::<Owner>(Table::Account, &key::phone(phone))? {
            Some(owner) => Subject::Known(owner.user),
            None => Subject::New(UserId::new(self.peek_id(Meta::NextUser)?), phone),
        };
        let place = self.place(&subject, info.id, Trust::Shown(holds))?;
        self.register(&subject, &place, info, token)
    }

    pub(crate) fn register_device(
        &mut self,
        user: Option<UserId>,
        info: &DeviceInfo,
        token: NewToken,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        check_info(info)?;
        let fingerprint = of_registration(user, info);
        let mut plan = None;
        if let Some(wanted) = idempotency {
            if let Some(first) = idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                return self.register_again(first, token);
            }
            plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?));
        }
        let subject = match user {
            Some(user) if self.head(user)?.is_none() => return Err(RequestError::UserNotFound),
            Some(user) => Subject::Known(user),
            None => Subject::New(UserId::new(self.peek_id(Meta::NextUser)?), ""),
        };
        let place = self.place(&subject, info.id, Trust::Full)?;
        let output = self.register(&subject, &place, info, token)?;
        if let (Some((wanted, plan)), Ok(Reply::Registered(registered))) = (plan, &output.result) {
            let result = IdemResult::Registered(*registered);
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        Ok(output)
    }

    pub(crate) fn revoke_token(
        &mut self,
        user: UserId,
        device: DeviceId,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        let fingerprint = Fingerprint::new(OF_REVOCATION).number(user.get()).number(device.get()).finish();
        let mut plan = None;
        if let Some(wanted) = idempotency {
            match idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                Some(IdemResult::Revoked(revoked)) => {
                    return Ok(Output { result: Ok(Reply::Revoked { revoked }), effect: Effect::None });
                }
                Some(_) => return Err(RequestError::Conflict),
                None => plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?)),
            }
        }
        let record = self.token(user, device)?.ok_or(RequestError::DeviceNotFound)?;
        let revoked = record.token.is_some() || record.vouched;
        if revoked {
            let (since, not_before_ms) = (self.next_attach, self.now_ms);
            let value = TokenRecord { since, token: None, not_before_ms, ..record }.to_bytes();
            self.overlay.put(Table::Device, &OfDevice::Token.key(user, device), value);
            self.note_act(Act::TokenRevoked, user, device, UserId::default());
        }
        if let Some((wanted, plan)) = plan {
            let result = IdemResult::Revoked(revoked);
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        let effect = Effect::Kick { user, device, reason: CloseReason::TokenRevoked };
        Ok(Output { result: Ok(Reply::Revoked { revoked }), effect })
    }

    /// Where the device goes. Reads only.
    fn place(
        &self,
        subject: &Subject<'_>,
        wanted: Option<DeviceId>,
        trust: Trust,
    ) -> Result<Place, RequestError> {
        let new = || Ok(Place::New(DeviceId::new(self.peek_id(Meta::NextDevice)?)));
        let Some(device) = wanted else { return new() };
        let owner = self.overlay.value::<Owner>(Table::Device, &key::device_owner(device))?;
        let owner = owner.ok_or(RequestError::DeviceNotFound)?.user;
        let record = self.token(owner, device)?.ok_or(RequestError::DeviceNotFound)?;
        if matches!(subject, Subject::Known(user) if *user == owner) {
            let known =
                self.overlay.value::<DeviceRecord>(Table::Device, &OfDevice::Record.key(owner, device))?;
            let created_at_ms = known.map_or(self.now_ms, |known| known.created_at_ms);
            return Ok(Place::Kept(device, record, created_at_ms));
        }
        // An expired token still tells its holder from a stranger; a revoked one is nobody's any more.
        let may_move = match trust {
            Trust::Full => true,
            Trust::Shown(shown) => {
                shown.zip(record.token).is_some_and(|(shown, token)| sign_in::same(&token.hash, &shown))
            }
        };
        if may_move { Ok(Place::Moved(device, owner)) } else { new() }
    }

    /// Writes only.
    fn register(
        &mut self,
        subject: &Subject<'_>,
        place: &Place,
        info: &DeviceInfo,
        token: NewToken,
    ) -> Result<Output, RequestError> {
        let device = place.device();
        let (user, is_new) = match *subject {
            Subject::Known(user) => (user, false),
            Subject::New(user, phone) => {
                self.make_user(user, phone);
                (user, true)
            }
        };
        let mut effect = Effect::None;
        let (mut before, mut created_at_ms) = (TokenRecord::NONE, self.now_ms);
        match place {
            Place::New(device) => self.take_id(Meta::NextDevice, device.get()),
            Place::Kept(device, record, at_ms) => {
                (before, created_at_ms) = (*record, *at_ms);
                effect = Effect::Kick { user, device: *device, reason: CloseReason::TokenRevoked };
            }
            Place::Moved(device, from) => {
                for kind in [OfDevice::Record, OfDevice::Token, OfDevice::Ack] {
                    self.overlay.delete(Table::Device, &kind.key(*from, *device));
                }
                effect = Effect::Kick { user: *from, device: *device, reason: CloseReason::TokenRevoked };
            }
        }
        let record = DeviceRecord { created_at_ms, info: DeviceInfo { id: None, ..info.clone() } };
        self.overlay.put(Table::Device, &OfDevice::Record.key(user, device), record.to_bytes());
        // A new device never had a session.
        let since = if matches!(place, Place::New(_)) { Attach::default() } else { self.next_attach };
        self.put_token(user, device, TokenRecord { since, ..before }, token);
        if !matches!(place, Place::Kept(..)) {
            self.overlay.put(Table::Device, &key::device_owner(device), Owner { user }.to_bytes());
        }
        self.note_act(Act::DeviceRegistered, user, device, UserId::default());
        Ok(Output { result: Ok(Reply::Registered(Registered { is_new, user, device })), effect })
    }

    /// The same ids; the token is the fresh one, since the first is kept nowhere.
    fn register_again(&mut self, first: IdemResult, token: NewToken) -> Result<Output, RequestError> {
        let IdemResult::Registered(registered) = first else { return Err(RequestError::Conflict) };
        let Registered { user, device, .. } = registered;
        // Moved to another user since: the first answer is no longer true.
        let record = self.token(user, device)?.ok_or(RequestError::Conflict)?;
        self.put_token(user, device, TokenRecord { since: self.next_attach, ..record }, token);
        let effect = Effect::Kick { user, device, reason: CloseReason::TokenRevoked };
        Ok(Output { result: Ok(Reply::Registered(registered)), effect })
    }

    /// The next token after those of `before`.
    fn put_token(&mut self, user: UserId, device: DeviceId, before: TokenRecord, token: NewToken) {
        let (generation, issued_at_ms) = (before.generation + 1, self.now_ms);
        let record = TokenRecord { generation, issued_at_ms, token: Some(token), ..before };
        self.overlay.put(Table::Device, &OfDevice::Token.key(user, device), record.to_bytes());
    }

    fn make_user(&mut self, user: UserId, phone: &str) {
        self.take_id(Meta::NextUser, user.get());
        let record = UserRecord { created_at_ms: self.now_ms, phone: phone.to_owned() };
        self.overlay.put(Table::Account, &key::user(user), record.to_bytes());
        if !phone.is_empty() {
            self.overlay.put(Table::Account, &key::phone(phone), Owner { user }.to_bytes());
        }
        self.note_act(Act::UserMade, user, DeviceId::default(), UserId::default());
        self.set_head(user, MailboxHead::EMPTY);
    }
}

fn of_registration(user: Option<UserId>, info: &DeviceInfo) -> u64 {
    let DeviceInfo { id, kind, brand, model, system_version, sdk_version, push_token } = info;
    let numbers = Fingerprint::new(OF_REGISTRATION)
        .number(user.unwrap_or_default().get())
        .number(id.unwrap_or_default().get())
        .number(i64::from(*kind) as u64);
    let texts = [brand, model, system_version, sdk_version, push_token];
    texts.iter().fold(numbers, |state, text| state.bytes(text.as_bytes())).finish()
}

fn check_phone(phone: &str) -> Result<(), RequestError> {
    let digits = phone.strip_prefix('+').unwrap_or(phone);
    let well_formed = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed && phone.len() <= PHONE_BYTES_MAX {
        return Ok(());
    }
    let rule = "must be 1 to 32 characters: digits with an optional leading plus";
    Err(RequestError::BadRequest { field: "phone_number", rule })
}

fn check_info(info: &DeviceInfo) -> Result<(), RequestError> {
    let texts = [&info.brand, &info.model, &info.system_version, &info.sdk_version, &info.push_token];
    if texts.iter().all(|text| text.len() <= DEVICE_TEXT_BYTES_MAX) {
        return Ok(());
    }
    Err(RequestError::BadRequest { field: "device", rule: "must have texts of at most 256 bytes each" })
}
