//! Registered devices and their signed-in connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use gimbal_codec::{Command, DeviceId, Seq, UserId, body, frame};
use gimbal_rpc::v1::{Device, DeviceKind, RegisterDeviceRequest};
use indicatif::ProgressBar;
use tokio::{runtime::Runtime, task::JoinSet, time::timeout};

use super::{
    sockets::{Event, Sockets},
    stage::unless_stopped,
};
use crate::{
    clock,
    grpc::{Api, Credential, explain},
};

/// Registrations under way at once: enough to fill a group commit, below any server's bound on open calls.
const REGISTERING_MAX: usize = 64;
/// How long one registration may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Sign-ins under way at once.
const SIGNING_IN_MAX: usize = 128;
/// How long no sign-in may be answered before the run gives up.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(10);

/// One registered device of a user of its own.
#[derive(Clone, Debug)]
pub struct Member {
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// Token.
    pub token: String,
}

/// The runtime of a run's gRPC calls: one thread, for the rest of the machine is the server's and the sockets'.
///
/// # Errors
/// When the thread cannot be started.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("no runtime")
}

/// Registers `count` users with one device each.
///
/// # Errors
/// At the first refused registration.
pub async fn register(api: &Api, key: &str, count: usize, bar: &ProgressBar) -> Result<Vec<Member>> {
    let credential = Credential::bearer(key)?;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..REGISTERING_MAX.min(count) {
        let (mut accounts, taken, bar) = (api.accounts(credential.clone()), Arc::clone(&taken), bar.clone());
        tasks.spawn(async move {
            let mut members = Vec::new();
            while taken.fetch_add(1, Ordering::Relaxed) < count {
                let device =
                    Device { kind: DeviceKind::Android.into(), model: "load".into(), ..Device::default() };
                let request =
                    RegisterDeviceRequest { device: Some(device), ..RegisterDeviceRequest::default() };
                unless_stopped("registration")?;
                let reply = timeout(REGISTER_TIMEOUT, accounts.register_device(request)).await;
                let reply =
                    reply.map_err(|_| anyhow!("control does not answer within {REGISTER_TIMEOUT:?}"))?;
                let reply = reply.map_err(|e| explain("register a device", &e))?.into_inner();
                let (user, device) = (UserId::new(reply.user_id), DeviceId::new(reply.device_id));
                members.push(Member { user, device, token: reply.token });
                bar.inc(1);
            }
            Ok::<_, anyhow::Error>(members)
        });
    }
    let mut members = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        members.append(&mut done.context("a registering task ended badly")??);
    }
    Ok(members)
}

/// The frame with which a member signs in.
pub fn sign_in_frame(member: &Member, cursor: Option<Seq>) -> bytes::Bytes {
    let sign_in = body::SignIn { user: member.user, device: member.device, token: &member.token, cursor };
    frame(Command::SignIn, "", 0, &sign_in)
}

/// Connects and signs in `members`; each gets the next index of `sockets`, in order.
///
/// # Errors
/// When a connection or sign-in is refused, or none is answered for 10 s.
pub fn sign_in(
    sockets: &mut Sockets,
    address: SocketAddr,
    members: &[Member],
    bar: &ProgressBar,
) -> Result<()> {
    let (mut started, mut answered, mut failed) = (0, 0, None);
    let mut last_answer = clock::now();
    while answered < members.len() {
        unless_stopped("sign-in")?;
        while started < members.len() && started - answered < SIGNING_IN_MAX {
            let index = sockets.connect(address).with_context(|| format!("cannot connect to {address}"))?;
            let frame = sign_in_frame(&members[started], Some(Seq::new(0)));
            sockets.write(index, |out| out.extend_from_slice(&frame));
            started += 1;
        }
        let before = answered;
        sockets.poll(Duration::from_millis(100), &mut |_, event, _| match event {
            Event::Frame(packet) if packet.command == Command::SignIn.number() => {
                match body::Reply::decode(packet.content) {
                    Ok(reply) if reply.code == 0 => answered += 1,
                    Ok(reply) => {
                        failed = Some(anyhow!("sign-in refused: {} ({})", reply.message, reply.code))
                    }
                    Err(error) => failed = Some(error.into()),
                }
            }
            Event::Frame(_) => {}
            Event::Closed(why) => {
                failed = failed.take().or_else(|| Some(anyhow!("closed before sign-in: {why}")))
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if answered > before {
            bar.inc((answered - before) as u64);
            last_answer = clock::now();
        } else if clock::now() - last_answer > SIGN_IN_TIMEOUT {
            bail!("{} sign-ins are not answered", started - answered);
        }
    }
    Ok(())
}
