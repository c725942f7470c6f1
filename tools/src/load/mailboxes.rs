//! After a run: the mailboxes themselves, read over gRPC, for the ledger.

use anyhow::{Context as _, Result};
use gimbal_rpc::v1::SyncRequest;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::fleet::Member;
use crate::{
    grpc::{Api, Credential, explain},
    ledger::Mark,
};

/// Mailboxes read at once.
const READING_MAX: usize = 8;
/// Messages asked for at a time.
const PAGE: u32 = 500;

/// A mailbox as `(seq, mark)`.
pub type Mailbox = Vec<(u64, Option<Mark>)>;

/// Reads all mailboxes, in order of `members`.
///
/// # Errors
/// At the first refused page.
pub async fn read_mailboxes(api: &Api, members: &[Member], bar: &ProgressBar) -> Result<Vec<Mailbox>> {
    let mut mailboxes = vec![Mailbox::new(); members.len()];
    let mut tasks = JoinSet::new();
    let mut next = 0;
    while next < members.len() || !tasks.is_empty() {
        while next < members.len() && tasks.len() < READING_MAX {
            let (api, member, index) = (api.clone(), members[next].clone(), next);
            tasks.spawn(async move { (index, read_mailbox(&api, &member).await) });
            next += 1;
        }
        if let Some(done) = tasks.join_next().await {
            let (index, mailbox) = done.context("a reading task ended badly")?;
            mailboxes[index] = mailbox?;
            bar.inc(1);
        }
    }
    Ok(mailboxes)
}

async fn read_mailbox(api: &Api, member: &Member) -> Result<Mailbox> {
    let credential = Credential::device(member.user.get(), member.device.get(), &member.token)?;
    let mut messages = api.messages(credential);
    let mut mailbox = Mailbox::new();
    loop {
        let after = mailbox.last().map_or(0, |&(seq, _)| seq);
        let page = messages.sync(SyncRequest { after, limit: PAGE }).await;
        let page = page.map_err(|status| explain("sync", &status))?.into_inner();
        mailbox.extend(page.messages.iter().map(|message| (message.seq, Mark::read(&message.content))));
        if !page.has_more || page.messages.is_empty() {
            return Ok(mailbox);
        }
    }
}
