//! Acts as calls: over the person's connection when there is one, else over gRPC; again with the same id until answered.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use gimbal_codec::{ClientMessageId, GroupId, UserId, code};
use gimbal_rpc::v1::{self, GroupRole};
use tokio::time::sleep;
use tonic::{Code, Response, Status};

use super::{
    device::Device,
    model::{Act, FOR_EVER_MS, Made, SAID, Word},
};
use crate::{
    client::ClientError,
    clock,
    grpc::{Api, Credential, explain},
    ledger::Mark,
};

/// How long an act may take, restarts of the server included.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before an act is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// An act with all that its calls need: ids for numbers.
pub(super) struct Task {
    pub(super) act: Act,
    /// Of the act, from 1.
    pub(super) number: u32,
    /// Who acts.
    pub(super) by: Arc<Device>,
    /// The user it is about; 0: none.
    pub(super) user: u64,
    /// The group; 0: none.
    pub(super) group: u64,
    /// Of a new group.
    pub(super) users: Vec<u64>,
    /// When it should have begun.
    pub(super) intended_ns: u64,
    /// Length of what is said.
    pub(super) bytes: usize,
}

/// What came of it.
pub(super) struct Done {
    pub(super) task: Task,
    /// `Err`: no answer in all the time.
    pub(super) word: Result<(Word, Made)>,
    /// The new person's first device.
    pub(super) registered: Option<(u64, u64, String)>,
    pub(super) took_ns: u64,
}

/// What is needed to act.
pub(super) struct Hands {
    pub(super) api: Api,
    pub(super) run: u64,
    pub(super) backend: Credential,
    /// Calls that had to be repeated.
    pub(super) repeats: AtomicU64,
    /// Calls that the server was too busy for.
    pub(super) shed: AtomicU64,
}

/// Whether to try again.
enum Once<T> {
    Answer(Result<T, String>),
    Again(String),
}

/// The server's reason, or that there was none: then nobody knows whether it was done.
fn judged<T>(what: &str, result: Result<Response<T>, Status>) -> Once<T> {
    match result {
        Ok(reply) => Once::Answer(Ok(reply.into_inner())),
        Err(status) => {
            let reason = status.metadata().get("gimbal-reason").and_then(|reason| reason.to_str().ok());
            match (reason, status.code()) {
                (Some("busy" | "unavailable" | "auth_unavailable") | None, _) | (_, Code::Unavailable) => {
                    Once::Again(format!("{:#}", explain(what, &status)))
                }
                (Some(reason), _) => Once::Answer(Err(reason.to_owned())),
            }
        }
    }
}

impl Hands {
    /// Does it, however often it takes.
    pub(super) async fn perform(&self, task: Task) -> Done {
        let mut registered = None;
        let word = match &task.act {
            Act::Say { .. } | Act::SayAll { .. } => self.say(&task).await,
            Act::SignUp => self.sign_up(&task).await.map(|(device, word)| {
                registered = Some(device);
                word
            }),
            Act::Found { .. } => self.found(&task).await,
            Act::Enlist { .. } | Act::Expel { .. } => self.move_member(&task).await,
            act if act.in_group().is_some() => self.in_group(&task).await,
            _ => self.befriend(&task).await,
        };
        let took_ns = clock::shared_ns().saturating_sub(task.intended_ns);
        Done { task, word, registered, took_ns }
    }

    async fn until_answered<T, F: Future<Output = Once<T>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<Result<T, String>> {
        let end = clock::now() + PATIENCE;
        loop {
            match call().await {
                Once::Answer(answer) => return Ok(answer),
                Once::Again(why) if clock::now() > end => anyhow::bail!("no answer for {PATIENCE:?}: {why}"),
                Once::Again(why) => {
                    let busy = why.contains("reason busy");
                    self.repeats.fetch_add(1, Ordering::Relaxed);
                    self.shed.fetch_add(u64::from(busy), Ordering::Relaxed);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    fn credential(task: &Task) -> Result<Credential> {
        Credential::device(task.by.user, task.by.device, &task.by.token)
    }

    fn key(&self, task: &Task) -> String {
        format!("{}-{}", self.run, task.number)
    }

    async fn say(&self, task: &Task) -> Result<(Word, Made)> {
        let (sender, intended_ns) = (0, task.intended_ns);
        let mut content = Vec::new();
        Mark { run: self.run, sender, number: task.number, intended_ns }.write(task.bytes, &mut content);
        let (id, content) = (task.by.next_id(), bytes::Bytes::from(content));
        let credential = Self::credential(task)?;
        let call = || async {
            if let Some(answer) = say_connected(task, id, &content).await {
                return Once::Answer(answer);
            }
            let request = v1::SendRequest {
                client_message_id: id.get(),
                to_user: task.user,
                to_group: task.group,
                command: SAID,
                content: content.clone(),
            };
            match judged("send", self.api.messages(credential.clone()).send(request).await) {
                Once::Answer(answer) => Once::Answer(answer.map(drop)),
                Once::Again(why) => Once::Again(why),
            }
        };
        let answer = self.until_answered(call).await?;
        Ok((answer.map(|()| Vec::new()), Made::default()))
    }

    async fn sign_up(&self, task: &Task) -> Result<((u64, u64, String), (Word, Made))> {
        let device = Some(v1::Device { model: "load".into(), ..v1::Device::default() });
        let idempotency_key = self.key(task);
        let request = v1::RegisterDeviceRequest { device, idempotency_key, ..Default::default() };
        let call = || async {
            let mut accounts = self.api.accounts(self.backend.clone());
            judged("register", accounts.register_device(request.clone()).await)
        };
        let reply = self.until_answered(call).await?;
        let reply = reply.map_err(|reason| anyhow::anyhow!("a new person is refused: {reason}"))?;
        let made = Made { user: reply.user_id, ..Made::default() };
        Ok(((reply.user_id, reply.device_id, reply.token), (Ok(Vec::new()), made)))
    }

    /// A further device of a person.
    pub(super) async fn second_device(&self, user: u64) -> Result<(u64, u64, String)> {
        let device = Some(v1::Device { model: "second".into(), ..v1::Device::default() });
        let idempotency_key = format!("{}-second-{user}", self.run);
        let request = v1::RegisterDeviceRequest { user_id: user, device, idempotency_key };
        let call = || async {
            let mut accounts = self.api.accounts(self.backend.clone());
            judged("register", accounts.register_device(request.clone()).await)
        };
        let reply = self.until_answered(call).await?.ok().context("a second device is refused")?;
        Ok((reply.user_id, reply.device_id, reply.token))
    }

    async fn found(&self, task: &Task) -> Result<(Word, Made)> {
        let request = v1::CreateGroupRequest {
            name: format!("group {}", task.number),
            user_ids: task.users.clone(),
            idempotency_key: self.key(task),
            ..v1::CreateGroupRequest::default()
        };
        let credential = Self::credential(task)?;
        let call =
            || async { judged("create", self.api.groups(credential.clone()).create(request.clone()).await) };
        let answer = self.until_answered(call).await?;
        let group = answer.as_ref().map_or(0, |reply| reply.group_id);
        Ok((answer.map(|reply| reasons(reply.members)), Made { group, ..Made::default() }))
    }

    async fn move_member(&self, task: &Task) -> Result<(Word, Made)> {
        let credential = Self::credential(task)?;
        let (group_id, user_ids, idempotency_key) = (task.group, vec![task.user], self.key(task));
        let add = v1::AddMembersRequest { group_id, user_ids, idempotency_key };
        let v1::AddMembersRequest { group_id, user_ids, idempotency_key } = add.clone();
        let remove = v1::RemoveMembersRequest { group_id, user_ids, idempotency_key };
        let call = || async {
            let mut groups = self.api.groups(credential.clone());
            match &task.act {
                Act::Enlist { .. } => judged(
                    "add",
                    groups.add_members(add.clone()).await.map(|reply| reply.map(|of| of.members)),
                ),
                _ => judged(
                    "remove",
                    groups.remove_members(remove.clone()).await.map(|reply| reply.map(|of| of.members)),
                ),
            }
        };
        Ok((self.until_answered(call).await?.map(reasons), Made::default()))
    }

    async fn in_group(&self, task: &Task) -> Result<(Word, Made)> {
        let credential = Self::credential(task)?;
        let key = self.key(task);
        let call = || async {
            let mut groups = self.api.groups(credential.clone());
            let (group_id, user_id, idempotency_key) = (task.group, task.user, key.clone());
            let nothing = |_| ();
            let done = match task.act {
                Act::Leave { .. } => {
                    let request = v1::LeaveGroupRequest { group_id, idempotency_key };
                    groups.leave(request).await.map(|reply| reply.map(nothing))
                }
                Act::SetRole { role, .. } => {
                    let role: i32 = GroupRole::into(role);
                    let request = v1::SetRoleRequest { group_id, user_id, role, idempotency_key };
                    groups.set_role(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::Mute { muted, .. } => {
                    let until_ms = if muted { FOR_EVER_MS } else { 0 };
                    let request = v1::MuteRequest { group_id, user_id, until_ms, idempotency_key };
                    groups.mute(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::HandOn { .. } => {
                    let request = v1::TransferGroupRequest { group_id, user_id, idempotency_key };
                    groups.transfer(request).await.map(|reply| reply.map(|_| ()))
                }
                _ => {
                    let request = v1::DissolveGroupRequest { group_id, idempotency_key };
                    groups.dissolve(request).await.map(|reply| reply.map(|_| ()))
                }
            };
            judged("in a group", done)
        };
        Ok((self.until_answered(call).await?.map(|()| Vec::new()), Made::default()))
    }

    async fn befriend(&self, task: &Task) -> Result<(Word, Made)> {
        let credential = Self::credential(task)?;
        let key = self.key(task);
        let call = || async {
            let mut friends = self.api.friends(credential.clone());
            let (user_id, idempotency_key, remark) = (task.user, key.clone(), String::new());
            let done = match task.act {
                Act::Ask { .. } => {
                    let request = v1::AddFriendRequest { user_id, idempotency_key, ..Default::default() };
                    friends.add(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::Agree { .. } => {
                    let request = v1::AgreeFriendRequest { user_id, remark, idempotency_key };
                    friends.agree(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::Decline { .. } => {
                    let request = v1::DeclineFriendRequest { user_id, idempotency_key };
                    friends.decline(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::Unfriend { .. } => {
                    let request = v1::RemoveFriendRequest { user_id, idempotency_key };
                    friends.remove(request).await.map(|reply| reply.map(|_| ()))
                }
                Act::Block { .. } => {
                    let request = v1::BlockRequest { user_id, idempotency_key };
                    friends.block(request).await.map(|reply| reply.map(|_| ()))
                }
                _ => {
                    let request = v1::UnblockRequest { user_id, idempotency_key };
                    friends.unblock(request).await.map(|reply| reply.map(|_| ()))
                }
            };
            judged("about a friend", done)
        };
        Ok((self.until_answered(call).await?.map(|()| Vec::new()), Made::default()))
    }
}

fn reasons(members: Vec<v1::ChangedMember>) -> Vec<String> {
    members.into_iter().map(|member| member.reason).collect()
}

/// Over the sender's connection; `None` when there is none or it gives no answer.
async fn say_connected(task: &Task, id: ClientMessageId, content: &[u8]) -> Option<Result<(), String>> {
    let client = task.by.client()?;
    let sent = if task.group > 0 {
        client.send_to_group(GroupId::new(task.group), id, SAID, content).await
    } else {
        client.send(UserId::new(task.user), id, SAID, content).await
    };
    match sent {
        Ok(_) => Some(Ok(())),
        Err(ClientError::Refused { code, .. }) => reason_of(code).map(|reason| Err(reason.to_owned())),
        Err(_) => None,
    }
}

/// Refusals that the model knows; others are asked again over gRPC, which says why in words.
const fn reason_of(code: i32) -> Option<&'static str> {
    match code {
        code::BLOCKED => Some("blocked"),
        code::MUTED => Some("muted"),
        code::NOT_IN_GROUP => Some("not_in_group"),
        code::GROUP_NOT_FOUND => Some("group_not_found"),
        _ => None,
    }
}
