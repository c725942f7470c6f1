//! The story of a message is what happened to it, and never more than is known.

use std::sync::Arc;

use gimbal_codec::{MessageId, Seq, UserId};
use gimbal_control::command::Command;
use gimbal_control::error::RequestError;
use gimbal_control::trace::read::{Ask, InMailbox, OnDevice, Outcome, SEARCHED_MAX, Story, story};
use gimbal_control::trace::{RECORD_BYTES, Trace};

use crate::groups::{give_out, group_send, made};
use crate::support::{Account, Node, START_MS, bare, push};

fn traced(kept: usize) -> (Node, Arc<Trace>) {
    let (mut node, trace) = (Node::memory(), Arc::new(Trace::new(kept)));
    node.engine.set_trace(Arc::clone(&trace));
    (node, trace)
}

fn all(message: MessageId) -> Ask {
    Ask { message, user: None, after: UserId::default(), limit: 50 }
}

fn ask(node: &Node, trace: &Trace, ask: &Ask) -> Result<Story, RequestError> {
    story(trace, &*node.store.snapshot(), ask)
}

fn acked(node: &mut Node, account: Account, seq: u64) {
    node.ask(Command::Ack { sender: bare(account), seq: Seq::new(seq) }).unwrap();
}

fn device(mailbox: &InMailbox, account: Account) -> &OnDevice {
    mailbox.devices.iter().find(|known| known.device == account.device).unwrap()
}

#[test]
fn the_story_follows_a_message_to_each_device_and_back() {
    let (mut node, trace) = traced(64);
    let (from, phone) = (node.account(None, "a"), node.account(None, "b"));
    let [laptop, tablet, watch] = ["c", "d", "e"].map(|secret| node.account(Some(phone.user), secret));
    let ((lane, _gateway), (other, full)) = (node.gateway(7), node.gateway(8));
    node.attach(lane, 1, phone);
    node.attach(lane, 2, laptop);
    node.attach(other, 1, tablet);
    node.now_ms += 10;
    full.set_full(true);
    let sent = node.send(from, 1, phone.user, "where am I?").unwrap();
    let (released_ms, at) = (node.now_ms, Seq::new(1));

    let outcome = |node: &Node, of: Account| {
        let found = ask(node, &trace, &all(sent.message_id)).unwrap();
        device(&found.mailboxes[0], of).outcome(true)
    };
    assert_eq!(
        [phone, laptop, tablet, watch].map(|of| outcome(&node, of)),
        [Outcome::Pushed, Outcome::Pushed, Outcome::LinkFull, Outcome::NotOnline]
    );
    node.now_ms += 10;
    acked(&mut node, phone, 1);
    trace.note_page(phone.user, tablet.device, (Seq::new(0), at), START_MS + 30);
    trace.note_page(phone.user, laptop.device, (at, at), START_MS + 40);
    node.now_ms += 100;
    acked(&mut node, phone, 1);
    assert_eq!(
        [phone, laptop, tablet, watch].map(|of| outcome(&node, of)),
        [Outcome::Acked, Outcome::Passed, Outcome::Answered, Outcome::NotOnline]
    );

    let found = ask(&node, &trace, &all(sent.message_id)).unwrap();
    let body = found.body.unwrap();
    assert_eq!(
        (body.from_user, body.created_at_ms, &body.content[..]),
        (from.user, released_ms, &b"where am I?"[..])
    );
    let mailbox = &found.mailboxes[0];
    assert_eq!((mailbox.user, mailbox.seq, mailbox.released_ms), (phone.user, at, released_ms));
    assert_eq!((found.mailbox_count, found.next, mailbox.is_trimmed), (1, None, false));
    assert_eq!(device(mailbox, phone).acked_ms, released_ms + 10, "the first ack that covers it");
    assert_eq!(device(mailbox, tablet).answered_ms, START_MS + 30);
    assert_eq!(device(mailbox, laptop).passed_ms, START_MS + 40);
    let push = device(mailbox, tablet).pushes[0];
    assert_eq!((push.gateway.get(), push.lost, push.at_ms), (8, true, released_ms));
}

#[test]
fn what_the_ring_has_forgotten_is_found_in_a_mailbox_that_is_named_and_no_time_is_invented() {
    let (mut node, trace) = traced(2);
    let (from, to) = (node.account(None, "a"), node.account(None, "b"));
    let old = node.send(from, 1, to.user, "old").unwrap().message_id;
    for id in 2..5 {
        node.send(from, id, to.user, "newer").unwrap();
    }
    acked(&mut node, to, 3);
    assert_eq!(ask(&node, &trace, &all(old)), Err(RequestError::NotTraced));
    let named = |message, user| Ask { user: Some(user), ..all(message) };
    let found = ask(&node, &trace, &named(old, to.user)).unwrap();
    let mailbox = &found.mailboxes[0];
    assert_eq!((mailbox.seq.get(), mailbox.released_ms, found.mailbox_count), (1, 0, 0));
    assert_eq!(&found.body.unwrap().content[..], b"old");
    let on_device = device(mailbox, to);
    assert_eq!(
        (on_device.outcome(false), on_device.acked_ms),
        (Outcome::Acked, 0),
        "an earlier ack may be forgotten"
    );

    let unknown = MessageId::new(77);
    assert_eq!(ask(&node, &trace, &named(unknown, to.user)), Err(RequestError::NotTraced));
    assert_eq!(ask(&node, &trace, &named(old, from.user)), Err(RequestError::NotTraced));
    assert_eq!(ask(&node, &trace, &named(old, UserId::new(1))), Err(RequestError::UserNotFound));
    assert_eq!(trace.bytes(), 2 * RECORD_BYTES);
}

#[test]
fn a_search_ends_after_so_many_of_the_newest() {
    let (mut node, _) = traced(0);
    let (from, to) = (node.account(None, "a"), node.account(None, "b"));
    let first = node.send(from, 1, to.user, "").unwrap().message_id;
    let second = node.send(from, 2, to.user, "").unwrap().message_id;
    let users = [to.user];
    for _ in 0..(SEARCHED_MAX - 1) / 1000 {
        node.turn((0..1000).map(|_| push(&users, "", "")).collect());
    }
    let rest = (SEARCHED_MAX - 1) % 1000;
    node.turn((0..rest).map(|_| push(&users, "", "")).collect());
    let trace = Trace::new(0);
    let of = |message| ask(&node, &trace, &Ask { user: Some(to.user), ..all(message) });
    assert_eq!(of(second).unwrap().mailboxes[0].seq.get(), 2);
    assert_eq!(of(first), Err(RequestError::NotTraced));
}

#[test]
fn a_message_to_a_group_is_told_by_pages_of_mailboxes() {
    let (mut node, trace) = traced(4096);
    let members: Vec<Account> = (0..7).map(|n| node.account(None, &format!("m{n}"))).collect();
    let mut users: Vec<UserId> = members.iter().map(|member| member.user).collect();
    let group = made(&mut node, users[0], &users[1..]);
    give_out(&mut node);
    let said = node.ask(group_send(members[0], 1, group, "all")).unwrap();
    give_out(&mut node);
    let gimbal_control::command::Reply::Sent(said) = said else { panic!("not {said:?}") };

    let (mut found, mut after) = (Vec::new(), UserId::default());
    loop {
        let page = ask(&node, &trace, &Ask { after, limit: 3, ..all(said.message_id) }).unwrap();
        assert_eq!(page.mailbox_count, 7);
        assert_eq!(page.body.unwrap().group, group);
        assert!(page.mailboxes.len() <= 3);
        found.extend(page.mailboxes.iter().map(|mailbox| mailbox.user));
        let Some(next) = page.next else { break };
        after = next;
    }
    users.sort_unstable();
    assert_eq!(found, users, "each once");
    let one = ask(&node, &trace, &Ask { user: Some(users[4]), ..all(said.message_id) }).unwrap();
    assert_eq!((one.mailboxes.len(), one.mailboxes[0].user, one.mailbox_count), (1, users[4], 7));
}
