//! Routes: takeover, stale calls, links that come and go, deliveries in order.

use std::sync::mpsc;

use gimbal_codec::{Attach, CloseReason, Seq, code, epoch_number};
use gimbal_control::command::{Command, DeviceInfo, Lane, Proof, Registered, Reply, ReplyTo, SessionRef};
use gimbal_control::error::RequestError;
use gimbal_control::writer::Job;
use gimbal_rpc::link::Down;

use crate::support::{
    Account, Node, START_MS, TOKEN_LIFE_MS, attach, bare, key, new_token, push, registered, send, session,
    session_send, signed_in, slot,
};

fn announce(lane: Lane, index: u32, was: Attach, account: Account) -> Command {
    let session = session(lane, index, was);
    Command::Announce { session, user: account.user, device: account.device, peer: "192.0.2.9:1".into() }
}

fn detach(at: SessionRef, account: Account) -> Command {
    Command::Detach { session: at, user: account.user, device: account.device }
}

fn online(node: &mut Node) -> Vec<(u64, u32)> {
    let reply = node.ask(Command::ListSessions { user: None, from: 0, limit: 1000 }).unwrap();
    let Reply::Sessions(page) = reply else { panic!("not {reply:?}") };
    page.sessions.iter().map(|info| (info.gateway.get(), info.session.index())).collect()
}

#[test]
fn a_newer_sign_in_kicks_the_older_session_wherever_it_is() {
    let mut node = Node::memory();
    let (one, first) = node.gateway(1);
    let (two, second) = node.gateway(2);
    let alice = node.account(None, "a");
    node.attach(one, 1, alice);
    let older = signed_in(&first.take());
    node.attach(two, 5, alice);
    let newer = signed_in(&second.take());
    assert!(newer > older);
    let kick = Down::Kick { session: slot(1), attach: older, reason: CloseReason::Takeover };
    assert_eq!(first.take(), [kick]);
    // The older one's close arrives late and unseats nobody.
    node.ask(detach(session(one, 1, older), alice)).unwrap();
    assert_eq!(online(&mut node), [(2, 5)]);
    node.ask(detach(session(two, 5, newer), alice)).unwrap();
    assert_eq!(online(&mut node), []);
    assert_eq!(node.counters.takeovers.get(), 1);
}

#[test]
fn a_wrong_token_is_refused_and_unseats_nobody() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(lane, 1, alice);
    gateway.take();
    let guess = Account { token: bob.token, ..alice };
    assert!(node.ask(attach(lane, 2, guess)).is_ok(), "it is answered on the lane");
    let items = gateway.take();
    let [Down::SignInRefused { session, refusal }] = &items[..] else { panic!("{items:?}") };
    assert_eq!((*session, refusal.code), (slot(2), code::NOT_SIGNED_IN));
    assert_eq!(online(&mut node), [(1, 1)]);
}

#[test]
fn what_concerns_a_session_leaves_in_command_order_and_in_one_call() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.send(alice, 1, bob.user, "before").unwrap();
    let calls = gateway.calls();
    node.turn(vec![
        send(alice, 2, bob.user, "still before"),
        attach(lane, 3, bob),
        send(alice, 3, bob.user, "after"),
    ]);
    assert_eq!(gateway.calls(), calls + 1);
    let items = gateway.take();
    let [Down::SignedIn { latest, attach, .. }, Down::Deliver { targets, body }] = &items[..] else {
        panic!("{items:?}")
    };
    assert_eq!(*latest, Seq::new(2));
    assert_eq!((targets[0].seq, targets[0].attach, &body.content[..]), (Seq::new(3), *attach, &b"after"[..]));
}

#[test]
fn one_item_carries_a_body_to_all_devices_of_a_gateway() {
    let mut node = Node::memory();
    let (one, first) = node.gateway(1);
    let (two, second) = node.gateway(2);
    let alice = node.account(None, "a");
    let more: Vec<Account> = (0..3).map(|n| node.account(Some(alice.user), &format!("d{n}"))).collect();
    node.attach(one, 1, alice);
    node.attach(one, 2, more[0]);
    node.attach(two, 3, more[1]);
    node.attach(two, 4, more[2]);
    first.take();
    second.take();
    node.ask(push(&[alice.user], "x", "")).unwrap();
    for gateway in [first, second] {
        let items = gateway.take();
        let [Down::Deliver { targets, .. }] = &items[..] else { panic!("{items:?}") };
        assert_eq!(targets.len(), 2);
    }
    assert_eq!(node.counters.deliveries.get(), 4);
}

#[test]
fn a_stale_session_is_refused_and_nothing_of_it_is_stored() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(lane, 1, alice);
    let older = session(lane, 1, signed_in(&gateway.take()));
    node.attach(lane, 2, alice);
    let newer = session(lane, 2, signed_in(&gateway.take()));
    node.run(&mut vec![
        session_send(alice, older, 1, bob.user, "stale"),
        session_send(alice, newer, 1, bob.user, "new"),
    ]);
    let items = gateway.take();
    let [Down::SendDone { result: Err(refusal), .. }, Down::SendDone { to, tag, result: Ok(sent) }] =
        &items[..]
    else {
        panic!("{items:?}")
    };
    assert_eq!(refusal.code, code::STALE);
    assert_eq!((*to, tag.seq, sent.seq), ((slot(2), newer.attach), 1, Seq::new(1)));
    assert_eq!(node.messages(bob.user, 0), (vec![(1, "new".into())], 1));
    let ack = Command::Ack {
        sender: gimbal_control::command::Sender { proof: Proof::Session(older), ..bare(alice) },
        seq: Seq::new(1),
    };
    node.run(&mut vec![Job {
        command: ack,
        reply_to: ReplyTo::Session { session: older, tag: Default::default() },
    }]);
    assert!(
        matches!(&gateway.take()[..], [Down::AckDone { result: Err(refusal), .. }] if refusal.code == code::STALE)
    );
}

/// A sync of a session, and what it is told.
fn session_sync(account: Account, at: SessionRef) -> (Job, mpsc::Receiver<Result<Attach, RequestError>>) {
    let (told, hears) = mpsc::channel();
    let sender = gimbal_control::command::Sender { proof: Proof::Session(at), ..bare(account) };
    let read = Box::new(move |admitted| told.send(admitted).unwrap());
    (Job { command: Command::Sync { sender, read }, reply_to: ReplyTo::Nobody }, hears)
}

#[test]
fn only_the_newest_session_of_a_device_reads_its_mailbox() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let alice = node.account(None, "a");
    node.attach(lane, 1, alice);
    let older = session(lane, 1, signed_in(&gateway.take()));
    node.attach(lane, 2, alice);
    let newer = session(lane, 2, signed_in(&gateway.take()));
    let (stale, of_stale) = session_sync(alice, older);
    let (fresh, of_fresh) = session_sync(alice, newer);
    let commits = node.counters.commits.get();
    node.run(&mut vec![stale, fresh]);
    assert_eq!(of_stale.try_recv(), Ok(Err(RequestError::Stale)));
    assert_eq!(of_fresh.try_recv(), Ok(Ok(newer.attach)));
    assert_eq!(node.counters.commits.get(), commits, "a read needs no commit");
}

#[test]
fn a_session_that_ends_within_a_batch_does_nothing_behind_its_end() {
    for case in 0..4 {
        let mut node = Node::memory();
        let (lane, gateway) = node.gateway(1);
        let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
        node.attach(lane, 1, alice);
        let at = session(lane, 1, signed_in(&gateway.take()));
        let (user, device) = (alice.user, alice.device);
        let end = match case {
            0 => Command::RevokeToken { user, device, idempotency: None },
            1 => attach(lane, 2, alice),
            2 => Command::Kick { user, device: None },
            _ => detach(at, alice),
        };
        let (sync, hears) = session_sync(alice, at);
        let before = Job { command: end, reply_to: ReplyTo::Nobody };
        node.run(&mut vec![before, session_send(alice, at, 1, bob.user, "late"), sync]);
        assert_eq!(node.messages(bob.user, 0).1, 0, "case {case}");
        assert_eq!(hears.try_recv(), Ok(Err(RequestError::Stale)), "case {case}");
    }
}

#[test]
fn a_revoked_device_is_kicked_and_its_later_calls_are_stale() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(lane, 1, alice);
    let at = session(lane, 1, signed_in(&gateway.take()));
    node.ask(Command::RevokeToken { user: alice.user, device: alice.device, idempotency: None }).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Kick { reason: CloseReason::TokenRevoked, .. }]));
    node.run(&mut vec![session_send(alice, at, 1, bob.user, "x")]);
    assert_eq!(node.messages(bob.user, 0).1, 0);
    gateway.take();
    node.ask(announce(lane, 1, at.attach, alice)).unwrap();
    assert!(
        matches!(gateway.take()[..], [Down::Kick { reason: CloseReason::TokenRevoked, .. }]),
        "nor by a new link"
    );
}

#[test]
fn a_kick_that_is_lost_with_its_link_is_said_again_when_the_session_is_announced() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let alice = node.account(None, "a");
    node.attach(lane, 1, alice);
    let was = signed_in(&gateway.take());
    gateway.set_full(true);
    let kick = Command::Kick { user: alice.user, device: Some(alice.device) };
    assert_eq!(node.ask(kick), Ok(Reply::Kicked(1)));
    assert!(gateway.take().is_empty(), "lost");
    for _ in 0..2 {
        let (lane, gateway) = node.gateway(1);
        node.ask(announce(lane, 1, was, alice)).unwrap();
        let kick = Down::Kick { session: slot(1), attach: was, reason: CloseReason::Kicked };
        assert_eq!(gateway.take(), [kick]);
        assert!(online(&mut node).is_empty());
    }
    let (lane, gateway) = node.gateway(1);
    node.attach(lane, 2, alice);
    let now = signed_in(&gateway.take());
    let (lane, gateway) = node.gateway(1);
    node.ask(announce(lane, 2, now, alice)).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Announced { .. }]), "a later session is its own");
}

#[test]
fn a_replaced_token_ends_the_session_that_showed_the_old_one() {
    for by_backend in [false, true] {
        let mut node = Node::memory();
        let (lane, gateway) = node.gateway(1);
        let register = |node: &Node, secret: &str| Command::RegisterDevice {
            user: None,
            device: DeviceInfo::default(),
            token: new_token(secret, node.now_ms),
            idempotency: key("k"),
        };
        let Registered { user, device, .. } = registered(node.ask(register(&node, "old")));
        let alice = Account { user, device, token: new_token("old", 0).hash };
        node.attach(lane, 1, alice);
        let was = signed_in(&gateway.take());
        let replace = if by_backend {
            let info = DeviceInfo { id: Some(device), ..DeviceInfo::default() };
            let token = new_token("new", node.now_ms);
            Command::RegisterDevice { user: Some(user), device: info, token, idempotency: None }
        } else {
            register(&node, "new")
        };
        node.ask(replace).unwrap();
        let kick = Down::Kick { session: slot(1), attach: was, reason: CloseReason::TokenRevoked };
        assert_eq!(gateway.take(), std::slice::from_ref(&kick));
        // Had the kick been lost with its link, the next one would not bring the session back.
        let (lane, gateway) = node.gateway(1);
        node.ask(announce(lane, 1, was, alice)).unwrap();
        assert_eq!(gateway.take(), [kick]);
        let renewed = Account { token: new_token("new", 0).hash, ..alice };
        node.attach(lane, 2, renewed);
        let now = signed_in(&gateway.take());
        let (lane, gateway) = node.gateway(1);
        node.ask(announce(lane, 2, now, renewed)).unwrap();
        assert!(matches!(gateway.take()[..], [Down::Announced { .. }]), "one of the new token stays");
        node.now_ms += TOKEN_LIFE_MS;
        let (lane, gateway) = node.gateway(1);
        node.ask(announce(lane, 2, now, renewed)).unwrap();
        assert!(matches!(gateway.take()[..], [Down::Kick { .. }]), "but not beyond its expiry");
    }
}

#[test]
fn after_a_restart_the_newer_of_two_announced_sessions_stays_in_either_order() {
    for newer_first in [true, false] {
        let mut node = Node::memory();
        let (lane, gateway) = node.gateway(1);
        let (other_lane, other) = node.gateway(2);
        let alice = node.account(None, "a");
        let (older, newer) = (Attach::new(epoch_number(0, 5)), Attach::new(epoch_number(0, 9)));
        let mut commands = vec![announce(lane, 1, older, alice), announce(other_lane, 2, newer, alice)];
        if newer_first {
            commands.reverse();
        }
        node.turn(commands);
        assert_eq!(online(&mut node), [(2, 2)]);
        assert!(other.take().iter().any(|item| matches!(item, Down::Announced { .. })));
        let kicks = gateway.take();
        let is_takeover = |item: &Down| matches!(item, Down::Kick { reason: CloseReason::Takeover, .. });
        assert!(kicks.iter().any(is_takeover), "{kicks:?}");
    }
}

#[test]
fn an_announcement_never_unseats_a_sign_in_of_this_life() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let alice = node.account(None, "a");
    node.attach(lane, 1, alice);
    gateway.take();
    node.ask(announce(lane, 2, Attach::new(epoch_number(0, 77)), alice)).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Kick { reason: CloseReason::Takeover, .. }]));
    assert_eq!(online(&mut node), [(1, 1)]);
}

#[test]
fn announced_sessions_learn_the_newest_seq_and_may_call_at_once() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.send(bob, 1, alice.user, "missed").unwrap();
    let (lane, gateway) = node.gateway(1);
    let was = Attach::new(epoch_number(0, 3));
    let at = session(lane, 1, was);
    let mut jobs = vec![Job { command: announce(lane, 1, was, alice), reply_to: ReplyTo::Nobody }];
    jobs.push(session_send(alice, at, 1, bob.user, "by the old number"));
    node.run(&mut jobs);
    let items = gateway.take();
    let [Down::Announced { attach, latest, .. }, Down::SendDone { to, result: Ok(_), .. }] = &items[..]
    else {
        panic!("{items:?}")
    };
    assert_eq!(*latest, Seq::new(1));
    assert!(*attach > was);
    assert_eq!(to.1, *attach, "answered by the number that the gateway knows by then");
    node.ask(announce(lane, 1, *attach, alice)).unwrap();
    let again = gateway.take();
    assert!(matches!(&again[..], [Down::Announced { attach: same, .. }] if same == attach), "{again:?}");
}

#[test]
fn a_new_link_of_a_gateway_forgets_what_it_does_not_announce() {
    let mut node = Node::memory();
    let (old, gateway) = node.gateway(1);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(old, 1, alice);
    node.attach(old, 2, bob);
    let items = gateway.take();
    let Down::SignedIn { attach: was, .. } = items[0] else { panic!("{items:?}") };
    let (new, gateway) = node.gateway(1);
    assert_eq!(online(&mut node), []);
    node.ask(announce(new, 1, was, alice)).unwrap();
    assert_eq!(online(&mut node), [(1, 1)]);
    node.ask(Command::GatewayDown { lane: old }).unwrap();
    assert_eq!(online(&mut node), [(1, 1)], "the end of the old link is no end of the new one");
    node.ask(attach(old, 9, bob)).unwrap();
    assert_eq!(online(&mut node), [(1, 1)], "what comes late by the old link is ignored");
    gateway.take();
    node.ask(Command::GatewayDown { lane: new }).unwrap();
    assert_eq!(online(&mut node), []);
    node.send(bob, 1, alice.user, "x").unwrap();
    assert_eq!(gateway.take(), []);
}

#[test]
fn a_full_link_loses_items_counted_and_harms_no_other_gateway() {
    let mut node = Node::memory();
    let (one, first) = node.gateway(1);
    let (two, second) = node.gateway(2);
    let alice = node.account(None, "a");
    let more = node.account(Some(alice.user), "b");
    node.attach(one, 1, alice);
    node.attach(two, 2, more);
    first.take();
    second.take();
    first.set_full(true);
    let result = node.send(alice, 1, alice.user, "x").unwrap();
    assert_eq!(result.seq, Seq::new(1));
    assert_eq!((first.take().len(), second.take().len()), (0, 1));
    assert_eq!(node.counters.link_full.get(), 1);
}

#[test]
fn a_listed_session_tells_its_address_and_its_time() {
    let mut node = Node::memory();
    let (lane, _gateway) = node.gateway(1);
    for (index, peer) in ["192.0.2.1:5000", "[2001:db8::7]:65535", "nowhere"].into_iter().enumerate() {
        let Account { user, device, token } = node.account(None, "a");
        let peer = peer.to_owned();
        node.ask(Command::Attach { lane, session: slot(index as u32), user, device, token, peer }).unwrap();
    }
    let reply = node.ask(Command::ListSessions { user: None, from: 0, limit: 10 }).unwrap();
    let Reply::Sessions(page) = reply else { panic!("not {reply:?}") };
    let peers: Vec<&str> = page.sessions.iter().map(|info| info.peer.as_str()).collect();
    assert_eq!(peers, ["192.0.2.1:5000", "[2001:db8::7]:65535", ""]);
    assert!(page.sessions.iter().all(|info| info.attached_at_ms == START_MS));
}

#[test]
fn an_administrator_lists_and_kicks() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let alice = node.account(None, "a");
    for index in 0..25 {
        let device = node.account(Some(alice.user), &format!("d{index}"));
        node.attach(lane, index, device);
    }
    gateway.take();
    let (mut from, mut seen) = (0, Vec::new());
    loop {
        let reply = node.ask(Command::ListSessions { user: Some(alice.user), from, limit: 10 }).unwrap();
        let Reply::Sessions(page) = reply else { panic!("not {reply:?}") };
        seen.extend(page.sessions.iter().map(|info| info.device));
        let Some(next) = page.next else { break };
        from = next;
    }
    assert_eq!(seen.len(), 25);
    let one = Command::Kick { user: alice.user, device: Some(seen[3]) };
    assert_eq!(node.ask(one), Ok(Reply::Kicked(1)));
    assert_eq!(node.ask(Command::Kick { user: alice.user, device: None }), Ok(Reply::Kicked(24)));
    let is_kick = |item: &Down| matches!(item, Down::Kick { reason: CloseReason::Kicked, .. });
    assert_eq!(gateway.take().iter().filter(|item| is_kick(item)).count(), 25);
    let Ok(Reply::Stats(stats)) = node.ask(Command::Stats) else { panic!("stats are answered") };
    assert_eq!((stats.sessions, stats.users_online, stats.gateways, stats.control_epoch), (0, 0, 1, 1));
    assert_eq!(stats.commits, node.counters.commits.get());
}
