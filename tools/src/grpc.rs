//! gRPC channels and the credentials of their callers.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use gimbal_rpc::v1::{
    accounts_client::AccountsClient, admin_client::AdminClient, events_client::EventsClient,
    friends_client::FriendsClient, groups_client::GroupsClient, messages_client::MessagesClient,
    rooms_client::RoomsClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Who calls.
#[derive(Clone)]
pub enum Credential {
    /// Nobody: only for signing in by phone.
    None,
    /// Backend or administrator: the value of `authorization`.
    Bearer(MetadataValue<Ascii>),
    /// A device: `user_id`, `device_id`, `token`.
    Device(MetadataValue<Ascii>, MetadataValue<Ascii>, MetadataValue<Ascii>),
}

impl Credential {
    /// A backend or admin key.
    ///
    /// # Errors
    /// When the key holds a character that metadata cannot carry.
    pub fn bearer(key: &str) -> Result<Self> {
        let value = format!("Bearer {key}")
            .parse()
            .map_err(|_| anyhow!("the key holds a character that is not ASCII"))?;
        Ok(Self::Bearer(value))
    }

    /// A signed-in device.
    ///
    /// # Errors
    /// When the token holds a character that metadata cannot carry.
    pub fn device(user: u64, device: u64, token: &str) -> Result<Self> {
        let token = token.parse().map_err(|_| anyhow!("the token holds a character that is not ASCII"))?;
        Ok(Self::Device(user.into(), device.into(), token))
    }

    fn apply(&self, metadata: &mut MetadataMap) {
        match self {
            Self::None => {}
            Self::Bearer(value) => {
                metadata.insert("authorization", value.clone());
            }
            Self::Device(user, device, token) => {
                metadata.insert("user_id", user.clone());
                metadata.insert("device_id", device.clone());
                metadata.insert("token", token.clone());
            }
        }
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.apply(request.metadata_mut());
        Ok(request)
    }
}

/// A channel with a caller's credential.
pub type Authorized = InterceptedService<Channel, Credential>;

/// Control's gRPC port.
#[derive(Clone)]
pub struct Api {
    channel: Channel,
}

impl Api {
    /// Connects; `url` is `http://host:port` or just `host:port`.
    ///
    /// # Errors
    /// When the address does not parse or nobody listens there.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, None).await
    }

    /// As [`Self::connect`]; an `https` URL needs a file with the authority of the server's certificate.
    ///
    /// # Errors
    /// As [`Self::connect`], and when the file and the URL do not fit each other.
    pub async fn connect_with(url: &str, ca: Option<&Path>) -> Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let endpoint = Endpoint::from_shared(url.clone())
            .with_context(|| format!("{url} is not a gRPC address (http://host:port)"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true);
        let endpoint = match (url.starts_with("https://"), ca) {
            (true, Some(ca)) => {
                let pem = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                endpoint.tls_config(tls).with_context(|| format!("{} is of no use", ca.display()))?
            }
            (true, None) => bail!("{url} needs --ca FILE, the authority of the server's certificate"),
            (false, Some(_)) => bail!("--ca is for an https URL, and {url} is none"),
            (false, None) => endpoint,
        };
        let channel = endpoint.connect().await.with_context(|| format!("cannot reach gRPC at {url}"))?;
        Ok(Self { channel })
    }

    /// Registration and credentials.
    pub fn accounts(&self, credential: Credential) -> AccountsClient<Authorized> {
        AccountsClient::with_interceptor(self.channel.clone(), credential)
    }

    /// Stored messages.
    pub fn messages(&self, credential: Credential) -> MessagesClient<Authorized> {
        MessagesClient::with_interceptor(self.channel.clone(), credential)
    }

    /// Who knows whom.
    pub fn friends(&self, credential: Credential) -> FriendsClient<Authorized> {
        FriendsClient::with_interceptor(self.channel.clone(), credential)
    }

    /// Groups of users.
    pub fn groups(&self, credential: Credential) -> GroupsClient<Authorized> {
        GroupsClient::with_interceptor(self.channel.clone(), credential)
    }

    /// What happens.
    pub fn events(&self, credential: Credential) -> EventsClient<Authorized> {
        EventsClient::with_interceptor(self.channel.clone(), credential)
    }

    /// Rooms.
    pub fn rooms(&self, credential: Credential) -> RoomsClient<Authorized> {
        RoomsClient::with_interceptor(self.channel.clone(), credential)
    }

    /// The operator's calls.
    pub fn admin(&self, credential: Credential) -> AdminClient<Authorized> {
        AdminClient::with_interceptor(self.channel.clone(), credential)
    }
}

/// One line about a failed call: what it was, the server's reason and field, its text.
#[must_use]
pub fn explain(what: &str, status: &Status) -> anyhow::Error {
    let detail = |name: &str| status.metadata().get(name).and_then(|value| value.to_str().ok());
    let mut text = format!("{what}: {} ({:?}", status.message(), status.code());
    if let Some(reason) = detail("gimbal-reason") {
        text.push_str(&format!(", reason {reason}"));
    }
    if let Some(field) = detail("gimbal-field") {
        text.push_str(&format!(", field {field}"));
    }
    text.push(')');
    anyhow!(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_credential_becomes_three_headers() {
        let mut credential = Credential::device(7, 9, "ab").expect("plain text");
        let request = credential.call(Request::new(())).expect("it never refuses");
        let get = |name: &str| request.metadata().get(name).map(|v| v.to_str().expect("ascii").to_owned());
        assert_eq!(
            (get("user_id"), get("device_id"), get("token")),
            (Some("7".into()), Some("9".into()), Some("ab".into()))
        );
    }

    #[test]
    fn a_key_with_a_line_break_is_refused() {
        assert!(Credential::bearer("a\nb").is_err());
    }

    #[test]
    fn a_failed_call_is_explained_with_reason_and_field() {
        let mut status = Status::invalid_argument("too long");
        status.metadata_mut().insert("gimbal-reason", "bad_request".parse().expect("ascii"));
        status.metadata_mut().insert("gimbal-field", "phone_number".parse().expect("ascii"));
        let text = explain("sign in", &status).to_string();
        assert_eq!(text, "sign in: too long (InvalidArgument, reason bad_request, field phone_number)");
    }
}
