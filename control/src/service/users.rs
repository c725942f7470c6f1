//! Profiles and devices: what the methods of `Accounts` about users do.

use gimbal_codec::{DeviceId, UserId};
use gimbal_rpc::v1;
use tonic::metadata::MetadataMap;

use super::{Services, bad, next_token, page_limit, page_start};
use crate::{
    api_key::Scope,
    command::social::{ProfileChange, Social},
    error::RequestError,
    social::read::{self, DevicePage, UserPage},
    store::Store,
};

/// Most users of one call.
const USERS_MAX: usize = 200;

impl Services {
    pub(super) async fn users_of(
        &self,
        metadata: &MetadataMap,
        body: v1::GetUsersRequest,
    ) -> Result<v1::GetUsersReply, RequestError> {
        if body.user_ids.len() > USERS_MAX {
            return Err(bad("user_ids", "must be at most 200 users"));
        }
        let is_backend = is_backend(metadata);
        let find = move |store: &dyn Store, caller: UserId| {
            let mut wanted: Vec<u64> = body.user_ids;
            if wanted.is_empty() {
                wanted.push(caller.get());
            }
            let mut seen = std::collections::HashSet::new();
            wanted.retain(|id| seen.insert(*id));
            let view = store.snapshot();
            let mut users = Vec::with_capacity(wanted.len());
            for id in wanted {
                let found = read::user(&*view, UserId::new(id))?;
                users.extend(found.map(|page| user(page, is_backend, caller)));
            }
            Ok(v1::GetUsersReply { users })
        };
        self.read_as(Scope::Accounts, metadata, find).await
    }

    pub(super) async fn update_user_as(
        &self,
        metadata: &MetadataMap,
        body: v1::UpdateUserRequest,
    ) -> Result<v1::UpdateUserReply, RequestError> {
        let v1::UpdateUserRequest { nickname, sex, avatar_url, extra, idempotency_key } = body;
        let change = ProfileChange { nickname, sex, avatar_url, extra };
        self.act(Scope::Accounts, metadata, Social::UpdateUser(change), &idempotency_key).await?;
        Ok(v1::UpdateUserReply {})
    }

    pub(super) async fn search(
        &self,
        metadata: &MetadataMap,
        body: v1::SearchUsersRequest,
    ) -> Result<v1::SearchUsersReply, RequestError> {
        let v1::SearchUsersRequest { query, phone_number, page_size, page_token } = body;
        let (from, limit, is_backend) =
            (page_start(&page_token)?, page_limit(page_size)?, is_backend(metadata));
        if query.is_empty() == phone_number.is_empty() {
            return Err(bad("query", "or phone_number must be set, and not both"));
        }
        let find = move |store: &dyn Store, caller: UserId| {
            let view = store.snapshot();
            if !phone_number.is_empty() {
                let found = read::user_by_phone(&*view, &phone_number)?;
                let users = found.map(|page| user(page, is_backend, caller)).into_iter().collect();
                return Ok(v1::SearchUsersReply { users, next_page_token: String::new() });
            }
            let page = read::search(&*view, &query, &from, limit)?;
            let users = page.items.into_iter().map(|page| user(page, is_backend, caller)).collect();
            Ok(v1::SearchUsersReply { users, next_page_token: next_token(page.next) })
        };
        self.read_as(Scope::Accounts, metadata, find).await
    }

    pub(super) async fn devices_of(
        &self,
        metadata: &MetadataMap,
    ) -> Result<v1::ListDevicesReply, RequestError> {
        let find = |store: &dyn Store, user| Ok(read::devices(&*store.snapshot(), user)?);
        let devices = self.read_as(Scope::Accounts, metadata, find).await?;
        Ok(v1::ListDevicesReply { devices: devices.into_iter().map(device).collect() })
    }

    pub(super) async fn remove_device_as(
        &self,
        metadata: &MetadataMap,
        body: v1::RemoveDeviceRequest,
    ) -> Result<v1::RemoveDeviceReply, RequestError> {
        let device = DeviceId::new(body.device_id);
        if device.is_none() {
            return Err(bad("device_id", "must be set"));
        }
        let act = Social::RemoveDevice(device);
        let (user, _) = self.act(Scope::Accounts, metadata, act, &body.idempotency_key).await?;
        self.plane.gate().forget(user);
        Ok(v1::RemoveDeviceReply {})
    }
}

/// A call without a device's token is by a key, or refused.
pub(super) fn is_backend(metadata: &MetadataMap) -> bool {
    crate::api_key::has_bearer(metadata) || crate::credential::shown_text(metadata).is_none()
}

/// As the caller may see it: a phone number is its owner's and the backend's.
pub(super) fn user(page: UserPage, is_backend: bool, caller: UserId) -> v1::User {
    let UserPage { user, record, profile } = page;
    let shows_phone = is_backend || user == caller;
    v1::User {
        user_id: user.get(),
        nickname: profile.nickname,
        sex: profile.sex,
        avatar_url: profile.avatar_url,
        extra: profile.extra,
        created_at_ms: record.created_at_ms,
        updated_at_ms: profile.updated_at_ms,
        phone_number: if shows_phone { record.phone } else { String::new() },
    }
}

fn device(page: DevicePage) -> v1::OwnedDevice {
    let (created_at_ms, acked_seq) = (page.record.created_at_ms, page.acked.get());
    let (has_token, expires_at_ms) = (page.expires_at_ms.is_some(), page.expires_at_ms.unwrap_or_default());
    v1::OwnedDevice { device: Some(described(page)), created_at_ms, has_token, expires_at_ms, acked_seq }
}

/// What a device says of itself.
pub(super) fn described(page: DevicePage) -> v1::Device {
    let info = page.record.info;
    v1::Device {
        id: page.device.get(),
        kind: info.kind,
        brand: info.brand,
        model: info.model,
        system_version: info.system_version,
        sdk_version: info.sdk_version,
        push_token: info.push_token,
    }
}
