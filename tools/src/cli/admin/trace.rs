//! `gimbal admin trace`: what happened to a message.

use anyhow::Result;
use gimbal::{
    clock::time_of_day,
    grpc::{Api, Credential, explain},
};
use gimbal_rpc::v1::{TraceReply, TraceRequest, TracedDevice, TracedMailbox};
use serde_json::{Value, json};

/// Mailboxes in one page.
const PAGE: u32 = 200;

#[derive(clap::Args, Debug)]
pub(super) struct Trace {
    /// The message, by the id that its send was answered with
    message: u64,
    /// In this user's mailbox only, of which the newest 10,000 messages are searched too
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    user: u64,
    /// Most mailboxes printed
    #[arg(long, default_value_t = 200)]
    limit: usize,
}

pub(super) async fn run(api: &Api, credential: Credential, what: &Trace, is_json: bool) -> Result<()> {
    let reply = ask(api, credential, what).await?;
    match is_json {
        true => gimbal::say!("{}", story_json(&reply)),
        false => gimbal::output::print(format_args!("{}", story(&reply))),
    }
    Ok(())
}

/// All pages as one.
async fn ask(api: &Api, credential: Credential, what: &Trace) -> Result<TraceReply> {
    let mut admin = api.admin(credential);
    let mut all: Option<TraceReply> = None;
    loop {
        let page_token = all.as_mut().map(|all| std::mem::take(&mut all.next_page_token));
        let request = TraceRequest {
            message_id: what.message,
            user_id: what.user,
            page_size: PAGE,
            page_token: page_token.unwrap_or_default(),
        };
        let reply = admin.trace(request).await.map_err(|status| explain("trace", &status))?.into_inner();
        let all = match &mut all {
            None => all.insert(reply),
            Some(all) => {
                all.mailboxes.extend(reply.mailboxes);
                all.next_page_token = reply.next_page_token;
                all
            }
        };
        if all.next_page_token.is_empty() || all.mailboxes.len() >= what.limit {
            all.mailboxes.truncate(what.limit);
            return Ok(std::mem::take(all));
        }
    }
}

fn story(reply: &TraceReply) -> String {
    let mut text = format!("message {}", reply.message_id);
    if reply.created_at_ms > 0 {
        match (reply.from_user, reply.from_device) {
            (0, _) => text += " from a backend",
            (user, device) => text += &format!(" from user {user}, device {device}"),
        }
        if reply.group_id > 0 {
            text += &format!(" to group {}, place {}", reply.group_id, reply.group_seq);
        }
        text += &format!(
            ", command {}, {} bytes\naccepted {} (UTC)\n",
            reply.command,
            reply.content_bytes,
            time_of_day(reply.created_at_ms)
        );
    } else {
        text += ": no mailbox below has it any more\n";
    }
    match reply.since_ms {
        0 => text += "nothing was released since control has started\n",
        since => text += &format!("known is what was released since {}\n", time_of_day(since)),
    }
    if reply.mailbox_count as usize != reply.mailboxes.len() {
        text += &format!("given to {} mailboxes since then; of these:\n", reply.mailbox_count);
    }
    if reply.mailboxes.is_empty() {
        text += "it is not known to be in this user's mailbox\n";
    }
    reply.mailboxes.iter().for_each(|mailbox| text += &mailbox_text(mailbox));
    text
}

fn mailbox_text(mailbox: &TracedMailbox) -> String {
    let mut text = format!("\nuser {}: seq {}", mailbox.user_id, mailbox.seq);
    match mailbox.released_at_ms {
        0 => text += ", released before that",
        at => text += &format!(", released {}", time_of_day(at)),
    }
    text += if mailbox.trimmed { ", no longer kept\n" } else { "\n" };
    mailbox.devices.iter().for_each(|device| text += &device_text(device));
    if mailbox.devices.is_empty() {
        text += "  the user has no device\n";
    }
    text
}

fn device_text(device: &TracedDevice) -> String {
    let mut text = format!("  device {}: {}\n", device.device_id, explained(&device.outcome));
    for push in &device.pushes {
        let (at, session) = (time_of_day(push.at_ms), &push.session);
        let end = if push.lost { ", whose link was full: lost" } else { "" };
        text += &format!("    {at}  handed to gateway {} for session {session}{end}\n", push.gateway_id);
    }
    let steps = [
        (device.answered_at_ms, "a sync was answered with it"),
        (device.passed_at_ms, "the device asked for what comes after it"),
        (device.acked_at_ms, "acknowledged"),
    ];
    for (at_ms, what) in steps.into_iter().filter(|(at_ms, _)| *at_ms > 0) {
        text += &format!("    {}  {what}\n", time_of_day(at_ms));
    }
    text
}

fn explained(outcome: &str) -> &str {
    match outcome {
        "acked" => "acknowledged",
        "passed" => "has it: it asked for what comes after it",
        "answered" => "answered by a sync, not acknowledged",
        "pushed" => "pushed, not acknowledged; a session that was behind or gone by then did not get it",
        "link_full" => "lost on a full link; a sync brings it",
        "not_online" => "was not online, and has not asked since",
        "not_known" => "not acknowledged, and too long ago to know more",
        other => other,
    }
}

fn story_json(reply: &TraceReply) -> Value {
    json!({
        "message_id": reply.message_id,
        "from_user": reply.from_user,
        "from_device": reply.from_device,
        "command": reply.command,
        "content_bytes": reply.content_bytes,
        "created_at_ms": reply.created_at_ms,
        "group": reply.group_id,
        "group_seq": reply.group_seq,
        "mailbox_count": reply.mailbox_count,
        "since_ms": reply.since_ms,
        "mailboxes": reply.mailboxes.iter().map(mailbox_json).collect::<Vec<_>>(),
    })
}

fn mailbox_json(mailbox: &TracedMailbox) -> Value {
    let device = |device: &TracedDevice| {
        let pushes = device.pushes.iter().map(|push| {
            let session = &push.session;
            json!({ "at_ms": push.at_ms, "gateway": push.gateway_id, "session": session, "lost": push.lost })
        });
        json!({
            "device": device.device_id,
            "outcome": device.outcome,
            "pushes": pushes.collect::<Vec<_>>(),
            "answered_at_ms": device.answered_at_ms,
            "passed_at_ms": device.passed_at_ms,
            "acked_at_ms": device.acked_at_ms,
        })
    };
    json!({
        "user": mailbox.user_id,
        "seq": mailbox.seq,
        "released_at_ms": mailbox.released_at_ms,
        "trimmed": mailbox.trimmed,
        "devices": mailbox.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_says_what_is_known_and_what_is_not() {
        let device = TracedDevice { device_id: 8, outcome: "not_known".into(), ..Default::default() };
        let mailbox = TracedMailbox { user_id: 7, seq: 3, devices: vec![device], ..Default::default() };
        let reply = TraceReply { message_id: 5, mailboxes: vec![mailbox], ..Default::default() };
        let text = story(&reply);
        for part in ["no mailbox below has it", "nothing was released", "user 7: seq 3", "too long ago"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }
}
