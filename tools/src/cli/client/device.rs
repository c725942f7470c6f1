//! The device a person acts as: known from the state file, or signed in by phone.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use gimbal::{
    client::{Client, ClientError, Events, Mailbox, Options},
    grpc::{Credential, explain},
    state::{Saved, StateFile, default_dir},
};
use gimbal_codec::{DeviceId, Seq, UserId, body::SignInResult, code};
use gimbal_rpc::v1::{self, DeviceKind, SignInRequest};

use super::GrpcArgs;

/// Who, and where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DeviceArgs {
    #[command(flatten)]
    pub(super) grpc: GrpcArgs,
    /// Address of the gateway [default: 127.0.0.1:8002, with --websocket 127.0.0.1:8003, with --quic localhost:8004]
    #[arg(long, env = "GIMBAL_ADDRESS", value_name = "HOST:PORT")]
    pub(super) address: Option<String>,
    /// Connect over WebSocket
    #[arg(long)]
    pub(super) websocket: bool,
    /// Connect over QUIC; --gateway-ca names whom to trust
    #[arg(long, conflicts_with = "websocket", requires = "gateway_ca")]
    pub(super) quic: bool,
    /// File with the authority of the gateway's certificate (PEM), for --quic
    #[arg(long, env = "GIMBAL_GATEWAY_CA", value_name = "FILE")]
    pub(super) gateway_ca: Option<PathBuf>,
    /// Phone number of the user, who is made when unknown
    #[arg(long, alias = "user-phone", value_name = "NUMBER")]
    pub(super) phone: String,
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
    /// For QUIC.
    trust: Option<quinn::ClientConfig>,
    /// A connection that is kept for several calls.
    pub(super) client: Option<Client>,
}

impl Device {
    /// Opens the state and signs in by phone when it holds nothing for this server.
    pub(crate) async fn open(args: DeviceArgs, default_name: &str) -> Result<Self> {
        let ca = args.gateway_ca.as_deref().filter(|_| args.quic);
        let trust = ca.map(gimbal::quic::trust).transpose()?;
        let dir = args.state.clone().unwrap_or_else(default_dir);
        let file = StateFile::open(&dir, &args.phone, args.device.as_deref().unwrap_or(default_name))?;
        let known = file.saved.clone().filter(|saved| saved.grpc == args.grpc.grpc);
        let is_fresh = known.is_none();
        let mut device = Self { args, file, saved: known.unwrap_or_default(), is_fresh, trust, client: None };
        if is_fresh {
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

    async fn sign_in_by_phone(&mut self) -> Result<()> {
        let mut accounts = self.args.grpc.connect().await?.accounts(Credential::None);
        let device = v1::Device {
            kind: DeviceKind::Unspecified.into(),
            brand: "gimbal".into(),
            model: "command line".into(),
            sdk_version: env!("CARGO_PKG_VERSION").into(),
            ..v1::Device::default()
        };
        let request = SignInRequest {
            phone_number: self.args.phone.clone(),
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
        let (user, device) = (UserId::new(self.saved.user), DeviceId::new(self.saved.device));
        let websocket = self.args.websocket;
        let default = match (websocket, self.args.quic) {
            (true, _) => "127.0.0.1:8003",
            (_, true) => "localhost:8004",
            _ => "127.0.0.1:8002",
        };
        let address = self.args.address.as_deref().unwrap_or(default);
        let options = Options::new(address, user, device, &self.saved.token);
        Options { cursor, websocket, quic: self.trust.clone(), ..options }
    }

    /// Signs in over the long connection; credentials that the server no longer knows are replaced once.
    pub(crate) async fn connect(
        &mut self,
        cursor: Option<Seq>,
    ) -> Result<(Client, Events, Option<SignInResult>), ClientError> {
        match Client::connect(self.options(cursor)).await {
            Err(error) if self.may_renew(&error).await => Client::connect(self.options(cursor)).await,
            other => other,
        }
    }

    /// The mailbox from the saved cursor on.
    pub(crate) async fn mailbox(&mut self) -> Result<Mailbox, ClientError> {
        let connect = |device: &Self| Mailbox::connect(device.options(Some(Seq::new(device.saved.cursor))));
        let mailbox = match connect(self).await {
            Err(error) if self.may_renew(&error).await => connect(self).await,
            other => other,
        };
        Ok(mailbox?.0)
    }

    async fn may_renew(&mut self, error: &ClientError) -> bool {
        let unknown = matches!(
            error,
            ClientError::Refused {
                code: code::NOT_SIGNED_IN | code::DEVICE_NOT_FOUND | code::USER_NOT_FOUND,
                ..
            }
        );
        if !unknown || self.is_fresh {
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
        self.file.save(self.saved.clone())
    }

    /// The next client message id; saved before it is used, so it is never used for two messages.
    pub(crate) fn reserve_client_message_id(&mut self) -> Result<u64> {
        let id = self.saved.next_client_message_id.max(1);
        self.saved.next_client_message_id = id.checked_add(1).context("no client message id is left")?;
        self.file.save(self.saved.clone())?;
        Ok(id)
    }
}
