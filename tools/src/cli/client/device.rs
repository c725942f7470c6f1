//! The device a person acts as: known from the state file, signed in by phone, or with a token that somebody else issued.

use std::{
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gimbal::{
    client::{Client, ClientError, Events, Mailbox, Options},
    grpc::{Credential, explain},
    state::{Saved, StateFile, default_dir},
    tls::Trust,
};
use gimbal_codec::{DeviceId, Seq, UserId, body::SignInResult, code, limits::TOKEN_BYTES_MAX};
use gimbal_rpc::v1::{self, DeviceKind, SignInRequest};

use super::GrpcArgs;

/// In place of a phone number in the name of the state file.
const BY_TOKEN: &str = "token";
/// Device ids that a client may choose begin here.
const OWN_DEVICE_MIN: u64 = 1 << 32;
/// Of them, as many as JavaScript's numbers and JSON hold.
const OWN_DEVICE_BITS: u64 = (1 << 52) - 1;

/// Who, and where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DeviceArgs {
    #[command(flatten)]
    pub(super) grpc: GrpcArgs,
    /// Address of the gateway [default: 127.0.0.1:8002, with --websocket 127.0.0.1:8003; with --tls localhost:8005, with both
    /// localhost:8006; with --quic localhost:8004]
    #[arg(long, env = "GIMBAL_ADDRESS", value_name = "HOST:PORT")]
    pub(super) address: Option<String>,
    /// Connect over WebSocket
    #[arg(long)]
    pub(super) websocket: bool,
    /// Connect over TLS; --gateway-ca names whom to trust
    #[arg(long, requires = "gateway_ca")]
    pub(super) tls: bool,
    /// Connect over QUIC; --gateway-ca names whom to trust
    #[arg(long, conflicts_with_all = ["websocket", "tls"], requires = "gateway_ca")]
    pub(super) quic: bool,
    /// File with the authority of the gateway's certificate (PEM), for --tls and --quic
    #[arg(long, env = "GIMBAL_GATEWAY_CA", value_name = "FILE")]
    pub(super) gateway_ca: Option<PathBuf>,
    /// Phone number of the user, who is made when unknown
    #[arg(long, alias = "user-phone", value_name = "NUMBER", required_unless_present = "token_file")]
    pub(super) phone: Option<String>,
    /// File with the token of an issuer (JWT) or of an external service in place of a phone number; read for each connection
    #[arg(long, env = "GIMBAL_TOKEN_FILE", value_name = "FILE", conflicts_with = "phone")]
    pub(super) token_file: Option<PathBuf>,
    /// Verification code; a server with --dev takes any
    #[arg(long, default_value = "0")]
    pub(super) code: String,
    /// Name of this device; each has its own credentials and cursor [default: listen, room or cli, by verb]
    #[arg(long, value_name = "NAME")]
    pub(super) device: Option<String>,
    /// Directory of credentials and cursors [default: ~/.local/state/gimbal]
    #[arg(long, env = "GIMBAL_STATE", value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
}

/// One device with its state file, locked.
pub(crate) struct Device {
    args: DeviceArgs,
    file: StateFile,
    saved: Saved,
    /// It was signed in by phone just now, so a refusal is final.
    is_fresh: bool,
    tls: Option<Trust>,
    quic: Option<quinn::ClientConfig>,
    /// A connection that is kept for several calls.
    pub(super) client: Option<Client>,
}

impl Device {
    /// Opens the state and signs in by phone, unless there is a token, when it holds nothing for this server.
    pub(crate) async fn open(args: DeviceArgs, default_name: &str) -> Result<Self> {
        let ca = args.gateway_ca.as_deref();
        let tls = ca.filter(|_| args.tls).map(Trust::read).transpose()?;
        let quic = ca.filter(|_| args.quic).map(gimbal::quic::trust).transpose()?;
        let dir = args.state.clone().unwrap_or_else(default_dir);
        let person = args.phone.as_deref().unwrap_or(BY_TOKEN);
        let file = StateFile::open(&dir, person, args.device.as_deref().unwrap_or(default_name))?;
        let known = file.saved.clone().filter(|saved| saved.grpc == args.grpc.grpc);
        let is_fresh = known.is_none();
        let mut device =
            Self { args, file, saved: known.unwrap_or_default(), is_fresh, tls, quic, client: None };
        if device.args.token_file.is_some() {
            device.take_token()?;
        } else if is_fresh {
            device.sign_in_by_phone().await?;
        }
        Ok(device)
    }

    /// User id.
    pub(crate) fn user(&self) -> u64 {
        self.saved.user
    }

    /// Device id.
    pub(crate) fn device(&self) -> u64 {
        self.saved.device
    }

    /// Reads the token anew: whoever issues it may have renewed it. Who it is about the server tells; a token that names no
    /// device is used as one that this file keeps.
    fn take_token(&mut self) -> Result<()> {
        let Some(path) = &self.args.token_file else { return Ok(()) };
        self.saved.token = read_token(path)?;
        self.saved.grpc.clone_from(&self.args.grpc.grpc);
        self.saved.next_client_message_id = self.saved.next_client_message_id.max(1);
        if self.saved.device == 0 && !names_device(&self.saved.token) {
            let number = RandomState::new().build_hasher().finish();
            self.saved.device = OWN_DEVICE_MIN + (number & OWN_DEVICE_BITS);
        }
        // The token itself is in its own file.
        self.file.save(Saved { token: String::new(), ..self.saved.clone() })
    }

    async fn sign_in_by_phone(&mut self) -> Result<()> {
        let api = self.args.grpc.connect().await?;
        let mut accounts = api.accounts(Credential::None);
        let device = v1::Device {
            kind: DeviceKind::Unspecified.into(),
            brand: "gimbal".into(),
            model: "command line".into(),
            sdk_version: env!("CARGO_PKG_VERSION").into(),
            ..v1::Device::default()
        };
        let request = SignInRequest {
            phone_number: self.args.phone.clone().unwrap_or_default(),
            code: self.args.code.clone(),
            device: Some(device),
        };
        let reply = accounts
            .sign_in(request)
            .await
            .map_err(|status| explain("sign in by phone", &status))?
            .into_inner();
        if reply.is_new {
            eprintln!("user {} is new", reply.user_id);
        }
        // Cursor and ids belong to the user and device they were counted for.
        self.saved = Saved {
            grpc: self.args.grpc.grpc.clone(),
            user: reply.user_id,
            device: reply.device_id,
            token: reply.token,
            cursor: 0,
            next_client_message_id: 1,
        };
        self.is_fresh = true;
        self.file.save(self.saved.clone())
    }

    fn options(&self, cursor: Option<Seq>) -> Options {
        let websocket = self.args.websocket;
        let default = match (self.args.tls, websocket) {
            _ if self.args.quic => "localhost:8004",
            (false, false) => "127.0.0.1:8002",
            (false, true) => "127.0.0.1:8003",
            (true, false) => "localhost:8005",
            (true, true) => "localhost:8006",
        };
        let address = self.args.address.as_deref().unwrap_or(default);
        // A token says itself who it is about.
        let user = if self.args.token_file.is_some() { 0 } else { self.saved.user };
        let (user, device) = (UserId::new(user), DeviceId::new(self.saved.device));
        let options = Options::new(address, user, device, &self.saved.token);
        Options { cursor, websocket, tls: self.tls.clone(), quic: self.quic.clone(), ..options }
    }

    /// Signs in over the long connection; credentials that the server no longer knows are replaced once.
    pub(crate) async fn connect(
        &mut self,
        cursor: Option<Seq>,
    ) -> Result<(Client, Events, Option<SignInResult>), ClientError> {
        self.renew_token();
        let connected = match Client::connect(self.options(cursor)).await {
            Err(error) if self.may_renew(&error).await => Client::connect(self.options(cursor)).await,
            other => other,
        }?;
        self.told(connected.2.as_ref())?;
        Ok(connected)
    }

    /// The mailbox from the saved cursor on.
    pub(crate) async fn mailbox(&mut self) -> Result<Mailbox, ClientError> {
        self.renew_token();
        let connect = |device: &Self| Mailbox::connect(device.options(Some(Seq::new(device.saved.cursor))));
        let (mailbox, result) = match connect(self).await {
            Err(error) if self.may_renew(&error).await => connect(self).await,
            other => other,
        }?;
        self.told(Some(&result))?;
        Ok(mailbox)
    }

    fn renew_token(&mut self) {
        if let Err(error) = self.take_token() {
            eprintln!("{error:#}; going on with the token as it was");
        }
    }

    /// Who a token was about. The file is written with the next cursor or id; those of one user are of no use to another.
    fn told(&mut self, result: Option<&SignInResult>) -> Result<(), ClientError> {
        let Some(SignInResult { user, device, .. }) = result else { return Ok(()) };
        let known = self.saved.user;
        if !user.is_none() && known != 0 && user.get() != known {
            let why =
                format!("the token is of user {user}, the state of user {known}: take another --device NAME");
            let address = self.options(None).address;
            return Err(ClientError::Connect { address, why });
        }
        if !user.is_none() {
            self.saved.user = user.get();
        }
        if self.saved.device == 0 {
            self.saved.device = device.get();
        }
        Ok(())
    }

    async fn may_renew(&mut self, error: &ClientError) -> bool {
        let unknown = matches!(
            error,
            ClientError::Refused {
                code: code::NOT_SIGNED_IN | code::DEVICE_NOT_FOUND | code::USER_NOT_FOUND,
                ..
            }
        );
        if !unknown || self.is_fresh || self.args.token_file.is_some() {
            return false;
        }
        eprintln!("the saved credentials are refused ({error}); signing in by phone");
        match self.sign_in_by_phone().await {
            Ok(()) => true,
            Err(error) => {
                eprintln!("{error:#}");
                false
            }
        }
    }

    /// Remembers that everything up to here was shown.
    pub(crate) fn save_cursor(&mut self, cursor: Seq) -> Result<()> {
        self.saved.cursor = cursor.get();
        self.is_fresh = false;
        self.save()
    }

    /// The next client message id; saved before it is used, so it is never used for two messages.
    pub(crate) fn reserve_client_message_id(&mut self) -> Result<u64> {
        let id = self.saved.next_client_message_id.max(1);
        self.saved.next_client_message_id = id.checked_add(1).context("no client message id is left")?;
        self.save()?;
        Ok(id)
    }

    fn save(&mut self) -> Result<()> {
        let mut saved = self.saved.clone();
        if self.args.token_file.is_some() {
            saved.token.clear();
        }
        self.file.save(saved)
    }
}

/// The first line of the file.
fn read_token(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        bail!("{} holds no token of 1 to {TOKEN_BYTES_MAX} bytes", path.display());
    }
    Ok(token.to_owned())
}

/// Whether a signed token is good for one device alone, which it then names by `device`.
fn names_device(token: &str) -> bool {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    claims.is_some_and(|claims| claims.get("device").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_names_a_device_is_told_from_one_that_does_not() {
        let token = |claims: &str| format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(claims));
        assert!(names_device(&token(r#"{"sub":"7","device":8}"#)));
        assert!(!names_device(&token(r#"{"sub":"7"}"#)));
        assert!(!names_device("opaque") && !names_device("a.b.c"));
    }
}
