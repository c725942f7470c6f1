//! What a user shows, the index over nicknames, and the user's devices.

use gimbal_codec::{DeviceId, UserId};

use crate::command::Reply;
use crate::command::social::ProfileChange;
use crate::error::RequestError;
use crate::event::Act;
use crate::executor::{Batch, Output};
use crate::store::value::{NameEntry, ProfileRecord, Value as _};
use crate::store::{StoreError, Table, key};

/// Suffixes of a nickname in the index: a part that begins later is not found.
const SUFFIXES_MAX: usize = 32;

impl Batch<'_> {
    pub(super) fn update_user(
        &mut self,
        user: UserId,
        change: &ProfileChange,
    ) -> Result<Output, RequestError> {
        if change.nickname.as_ref().is_some_and(|name| name.contains('\0')) {
            return Err(RequestError::BadRequest { field: "nickname", rule: "must not contain NUL" });
        }
        let before = self.profile(user)?;
        let mut after = ProfileRecord { updated_at_ms: self.now_ms, ..before.clone() };
        let ProfileChange { nickname, sex, avatar_url, extra } = change;
        let texts =
            [(nickname, &mut after.nickname), (avatar_url, &mut after.avatar_url), (extra, &mut after.extra)];
        for (wanted, text) in texts {
            if let Some(wanted) = wanted {
                wanted.clone_into(text);
            }
        }
        after.sex = sex.unwrap_or(before.sex);
        if after.nickname != before.nickname {
            for (at, _) in index(&before.nickname, user) {
                self.overlay.delete(Table::Account, &at);
            }
            for (at, entry) in index(&after.nickname, user) {
                self.overlay.put(Table::Account, &at, entry.to_bytes());
            }
        }
        self.overlay.put(Table::Account, &key::profile(user), after.to_bytes());
        self.note_act(Act::ProfileChanged, user, DeviceId::default(), UserId::default());
        Ok(Output::plain(Reply::Done))
    }

    pub(super) fn remove_device(&mut self, user: UserId, device: DeviceId) -> Result<Output, RequestError> {
        self.token(user, device)?.ok_or(RequestError::DeviceNotFound)?;
        let effect = self.forget_device(user, device);
        self.note_act(Act::DeviceRemoved, user, device, UserId::default());
        Ok(Output { result: Ok(Reply::Done), effect })
    }

    pub(crate) fn profile(&self, user: UserId) -> Result<ProfileRecord, StoreError> {
        Ok(self.overlay.value(Table::Account, &key::profile(user))?.unwrap_or_default())
    }
}

/// Keys and values of a nickname in the index: one for each of its suffixes of two characters and more.
fn index(nickname: &str, user: UserId) -> Vec<(Vec<u8>, NameEntry)> {
    let name = nickname.to_lowercase();
    let starts: Vec<usize> = name.char_indices().map(|(at, _)| at).collect();
    let whole = starts.len().saturating_sub(1).min(SUFFIXES_MAX);
    let entry = |&offset: &usize| {
        (key::name(&name[offset..], user), NameEntry { offset: offset as u64, name: name.clone() })
    };
    starts[..whole].iter().map(entry).collect()
}
