//! Registration and credentials.

use std::sync::Arc;

use gimbal_codec::{DeviceId, UserId};
use gimbal_rpc::v1::{self, accounts_server::Accounts};
use tonic::{Request, Response, Status};

use super::{Services, bad, mismatch};
use crate::{
    api_key::{self, Scope},
    clock,
    code::LIFETIME,
    command::{
        Command, DEVICE_TEXT_BYTES_MAX, DeviceInfo, IdempotencyKey, NewToken, PHONE_BYTES_MAX, Registered,
        Reply,
    },
    credential,
    error::RequestError,
    front::Peer,
};

#[tonic::async_trait]
impl Accounts for Services {
    async fn request_code(
        &self,
        request: Request<v1::RequestCodeRequest>,
    ) -> Result<Response<v1::RequestCodeReply>, Status> {
        self.keeps_accounts()?;
        let from = request.extensions().get::<Peer>().map(|peer| peer.address().ip());
        let phone = request.into_inner().phone_number;
        check_phone(&phone)?;
        let (codes, random) = (Arc::clone(&self.codes), random()?);
        // The issuer writes a file.
        let asked = tokio::task::spawn_blocking(move || codes.request(&phone, from, clock::now(), random));
        let lifetime = asked.await.map_err(|_| RequestError::Internal)??;
        debug_assert_eq!(lifetime, LIFETIME);
        let expires_in_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(v1::RequestCodeReply { expires_in_ms }))
    }

    async fn sign_in(
        &self,
        request: Request<v1::SignInRequest>,
    ) -> Result<Response<v1::SignInReply>, Status> {
        self.keeps_accounts()?;
        let holds = credential::shown_token(request.metadata());
        let v1::SignInRequest { phone_number: phone, code, device } = request.into_inner();
        check_phone(&phone)?;
        let device = device_info(device)?;
        self.codes.check(&phone, &code, clock::now())?;
        let (text, token) = self.new_token()?;
        let command = Command::SignIn { phone: phone.clone(), device, token, holds };
        let registered =
            self.registered(command).await.inspect_err(|_| self.codes.give_back(&phone, &code))?;
        Ok(Response::new(v1::SignInReply {
            is_new: registered.is_new,
            user_id: registered.user.get(),
            device_id: registered.device.get(),
            token: text,
            expires_at_ms: token.expires_at_ms,
        }))
    }

    async fn register_device(
        &self,
        request: Request<v1::RegisterDeviceRequest>,
    ) -> Result<Response<v1::RegisterDeviceReply>, Status> {
        self.may(Scope::Accounts, request.metadata())?;
        self.keeps_accounts()?;
        let v1::RegisterDeviceRequest { user_id, device, idempotency_key } = request.into_inner();
        let (text, token) = self.new_token()?;
        let command = Command::RegisterDevice {
            user: (user_id != 0).then(|| UserId::new(user_id)),
            device: device_info(device)?,
            token,
            idempotency: IdempotencyKey::parse(&idempotency_key)?,
        };
        let registered = self.registered(command).await?;
        Ok(Response::new(v1::RegisterDeviceReply {
            is_new: registered.is_new,
            user_id: registered.user.get(),
            device_id: registered.device.get(),
            token: text,
            expires_at_ms: token.expires_at_ms,
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenReply>, Status> {
        let named =
            |body: &v1::RevokeTokenRequest| (UserId::new(body.user_id), DeviceId::new(body.device_id));
        let by_backend = api_key::has_bearer(request.metadata());
        if by_backend {
            self.may(Scope::Accounts, request.metadata())?;
        } else if self.read(request.metadata(), |_, user, device| Ok((user, device))).await?
            != named(request.get_ref())
        {
            return Err(RequestError::PermissionDenied.into());
        }
        let body = request.into_inner();
        let (user, device) = named(&body);
        if user.is_none() {
            return Err(bad("user_id", "must be set").into());
        }
        if device.is_none() {
            return Err(bad("device_id", "must be set").into());
        }
        // Keys are the backend's space; a device that revoked its own token has no second call to make.
        let idempotency = IdempotencyKey::parse(&body.idempotency_key)?.filter(|_| by_backend);
        let reply = self.call(Command::RevokeToken { user, device, idempotency }).await?;
        self.plane.gate().forget(user);
        match reply {
            Reply::Revoked { revoked } => Ok(Response::new(v1::RevokeTokenReply { revoked })),
            other => mismatch(&other),
        }
    }

    async fn revoke_tokens(
        &self,
        request: Request<v1::RevokeTokensRequest>,
    ) -> Result<Response<v1::RevokeTokensReply>, Status> {
        self.may_any(&[Scope::Accounts, Scope::Admin], request.metadata())?;
        let v1::RevokeTokensRequest { user_id, before_ms, idempotency_key } = request.into_inner();
        if user_id == 0 {
            return Err(bad("user_id", "must be set").into());
        }
        let (user, idempotency) = (UserId::new(user_id), IdempotencyKey::parse(&idempotency_key)?);
        let reply = self.call(Command::RevokeTokens { user, before_ms, idempotency }).await?;
        // After it: what was asked before the revocation counts no more, and is not remembered any longer.
        self.plane.gate().forget(user);
        match reply {
            Reply::RevokedBefore { before_ms, devices } => {
                Ok(Response::new(v1::RevokeTokensReply { before_ms, devices }))
            }
            other => mismatch(&other),
        }
    }

    async fn get_users(
        &self,
        request: Request<v1::GetUsersRequest>,
    ) -> Result<Response<v1::GetUsersReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        Ok(Response::new(self.users_of(&metadata, body).await?))
    }

    async fn update_user(
        &self,
        request: Request<v1::UpdateUserRequest>,
    ) -> Result<Response<v1::UpdateUserReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        Ok(Response::new(self.update_user_as(&metadata, body).await?))
    }

    async fn search_users(
        &self,
        request: Request<v1::SearchUsersRequest>,
    ) -> Result<Response<v1::SearchUsersReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        Ok(Response::new(self.search(&metadata, body).await?))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesReply>, Status> {
        Ok(Response::new(self.devices_of(request.metadata()).await?))
    }

    async fn remove_device(
        &self,
        request: Request<v1::RemoveDeviceRequest>,
    ) -> Result<Response<v1::RemoveDeviceReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        Ok(Response::new(self.remove_device_as(&metadata, body).await?))
    }
}

impl Services {
    fn new_token(&self) -> Result<(String, NewToken), RequestError> {
        let (text, hash) = credential::new_token()?;
        Ok((text, NewToken { hash, expires_at_ms: self.token_expiry_ms(clock::now_ms()) }))
    }

    async fn registered(&self, command: Command) -> Result<Registered, RequestError> {
        match self.call(command).await? {
            Reply::Registered(registered) => Ok(registered),
            other => mismatch(&other),
        }
    }
}

fn check_phone(phone: &str) -> Result<(), RequestError> {
    let digits = phone.strip_prefix('+').unwrap_or(phone);
    let is_phone = phone.len() <= PHONE_BYTES_MAX
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_phone {
        Ok(())
    } else {
        Err(bad("phone_number", "must be 1 to 32 characters: digits with an optional leading plus"))
    }
}

/// An absent device is one that says nothing of itself.
fn device_info(device: Option<v1::Device>) -> Result<DeviceInfo, RequestError> {
    let device = device.unwrap_or_default();
    if v1::DeviceKind::try_from(device.kind).is_err() {
        return Err(bad("device.kind", "must be a known kind"));
    }
    let texts = [
        ("device.brand", &device.brand),
        ("device.model", &device.model),
        ("device.system_version", &device.system_version),
        ("device.sdk_version", &device.sdk_version),
        ("device.push_token", &device.push_token),
    ];
    if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.len() > DEVICE_TEXT_BYTES_MAX) {
        return Err(bad(field, "must be at most 256 bytes"));
    }
    Ok(DeviceInfo {
        id: (device.id != 0).then(|| DeviceId::new(device.id)),
        kind: device.kind,
        brand: device.brand,
        model: device.model,
        system_version: device.system_version,
        sdk_version: device.sdk_version,
        push_token: device.push_token,
    })
}

fn random() -> Result<u64, RequestError> {
    getrandom::u64().map_err(|error| {
        tracing::error!(%error, "no randomness");
        RequestError::Internal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_number_is_digits_with_an_optional_plus() {
        for good in ["1", "+491234", &"1".repeat(32)] {
            assert_eq!(check_phone(good), Ok(()), "{good}");
        }
        for wrong in ["", "+", "12a", "++1", "1+", "１２", &"1".repeat(33)] {
            assert_eq!(
                check_phone(wrong).err().and_then(RequestError::field),
                Some("phone_number"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_device_says_little_and_only_known_things() {
        assert_eq!(device_info(None).unwrap().id, None);
        let long = v1::Device { model: "x".repeat(257), ..v1::Device::default() };
        assert_eq!(device_info(Some(long)).err().and_then(RequestError::field), Some("device.model"));
        let odd = v1::Device { kind: 99, ..v1::Device::default() };
        assert_eq!(device_info(Some(odd)).err().and_then(RequestError::field), Some("device.kind"));
    }
}
