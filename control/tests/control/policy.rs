//! Which of a user's devices stay online together, by policy, at sign-in and when they come back.

use std::sync::Arc;

use gimbal_codec::{Attach, CloseReason, DeviceId, code};
use gimbal_control::command::{Command, DeviceInfo, Lane, Registered, Reply, ReplyTo, Vouched};
use gimbal_control::config::devices::{Conflict, Devices, Kind, PolicyName};
use gimbal_control::log::EmbeddedLog;
use gimbal_control::store::Store;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::writer::Job;
use gimbal_rpc::link::Down;

use crate::support::{
    Account, Gateway, Node, START_MS, attach, new_token, registered, session, session_send, signed_in, slot,
};

const ANDROID: i32 = 1;
const IOS: i32 = 2;
const WEB: i32 = 5;

fn node(devices: &Devices) -> Node {
    over(Arc::new(MemoryStore::new()), devices)
}

fn over(store: Arc<dyn Store>, devices: &Devices) -> Node {
    let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
    Node::with_policy(store, log, devices.policy())
}

fn named(policy: PolicyName, conflict: Conflict) -> Devices {
    Devices { policy, conflict, ..Devices::default() }
}

/// A device of a kind, of the same user as `of`.
fn device(node: &mut Node, of: Option<Account>, kind: i32) -> Account {
    let token = new_token(&format!("{kind} {of:?}"), node.now_ms);
    let device = DeviceInfo { kind, ..DeviceInfo::default() };
    let user = of.map(|account| account.user);
    let command = Command::RegisterDevice { user, device, token, idempotency: None };
    let Registered { user, device, .. } = registered(node.ask(command));
    Account { user, device, token: token.hash }
}

fn announce(lane: Lane, index: u32, was: Attach, account: Account) -> Command {
    let session = session(lane, index, was);
    Command::Announce { session, user: account.user, device: account.device, peer: String::new() }
}

/// Slots of the sessions that are online.
fn online(node: &mut Node) -> Vec<u32> {
    let reply = node.ask(Command::ListSessions { user: None, from: 0, limit: 1000 }).unwrap();
    let Reply::Sessions(page) = reply else { panic!("not {reply:?}") };
    let mut slots: Vec<u32> = page.sessions.iter().map(|info| info.session.index()).collect();
    slots.sort_unstable();
    slots
}

/// What the clients of the kicked sessions are told, by slot.
fn kicked(gateway: &Gateway) -> Vec<(u32, CloseReason)> {
    let kick = |item: Down| match item {
        Down::Kick { session, reason, .. } => Some((session.index(), reason)),
        _ => None,
    };
    gateway.take().into_iter().filter_map(kick).collect()
}

fn refused(gateway: &Gateway) -> Vec<(u32, i32)> {
    let refusal = |item: Down| match item {
        Down::SignInRefused { session, refusal } => Some((session.index(), refusal.code)),
        _ => None,
    };
    gateway.take().into_iter().filter_map(refusal).collect()
}

fn ended(node: &Node, reason: CloseReason) -> u64 {
    node.counters.ended().find(|(text, _)| *text == reason.text()).unwrap().1
}

#[test]
fn a_newcomer_takes_the_place_of_the_devices_that_its_policy_excludes() {
    for (policy, stay, told) in [
        (PolicyName::All, vec![1, 2, 3, 4], vec![]),
        (PolicyName::OnePerKind, vec![2, 3, 4], vec![1]),
        (PolicyName::OnePerGroup, vec![3, 4], vec![1, 2]),
        (PolicyName::One, vec![4], vec![1, 2, 3]),
    ] {
        let mut node = node(&named(policy, Conflict::Takeover));
        let (lane, gateway) = node.gateway(1);
        let first = device(&mut node, None, ANDROID);
        let accounts = [first, device(&mut node, Some(first), IOS), device(&mut node, Some(first), WEB)];
        let second_phone = device(&mut node, Some(accounts[2]), ANDROID);
        let stranger = device(&mut node, None, ANDROID);
        node.attach(lane, 9, stranger);
        let mut all = Vec::new();
        for (index, account) in (1..).zip(accounts.iter().chain([&second_phone])) {
            node.attach(lane, index, *account);
            all.extend(kicked(&gateway));
        }
        all.sort_unstable_by_key(|(slot, _)| *slot);
        let of_other = |slot| (slot, CloseReason::OtherDevice);
        assert_eq!(all, told.iter().copied().map(of_other).collect::<Vec<_>>(), "{policy:?}");
        assert_eq!(online(&mut node), [&stay[..], &[9]].concat(), "{policy:?}: strangers do not matter");
        assert_eq!(ended(&node, CloseReason::OtherDevice), told.len() as u64);
        assert_eq!(node.counters.takeovers.get(), 0);
    }
}

#[test]
fn a_newcomer_is_refused_and_unseats_nobody_where_those_online_stay() {
    let mut node = node(&named(PolicyName::OnePerGroup, Conflict::Refuse));
    let (lane, gateway) = node.gateway(1);
    let phone = device(&mut node, None, ANDROID);
    let (other, web) = (device(&mut node, Some(phone), IOS), device(&mut node, Some(phone), WEB));
    node.attach(lane, 1, phone);
    node.attach(lane, 2, web);
    gateway.take();
    node.attach(lane, 3, other);
    assert_eq!(refused(&gateway), [(3, code::DEVICE_TAKEN)]);
    assert_eq!(online(&mut node), [1, 2]);
    let count = node.counters.refused().find(|(reason, _)| *reason == "device_taken").unwrap().1;
    assert_eq!(count, 1);
    // Its own older session is no other device.
    node.attach(lane, 4, phone);
    assert_eq!(kicked(&gateway), [(1, CloseReason::Takeover)]);
    let Ok(Reply::Kicked(1)) = node.ask(Command::Kick { user: phone.user, device: Some(phone.device) })
    else {
        panic!("the phone was online")
    };
    node.attach(lane, 5, other);
    assert_eq!(online(&mut node), [2, 5], "the place is free again");
}

#[test]
fn one_session_more_than_a_user_may_have_ends_the_oldest_or_is_refused() {
    for conflict in [Conflict::Takeover, Conflict::Refuse] {
        let mut node = node(&Devices { sessions_max: 3, conflict, ..Devices::default() });
        let (lane, gateway) = node.gateway(1);
        let first = node.account(None, "0");
        let more: Vec<Account> = (1..4).map(|n| node.account(Some(first.user), &n.to_string())).collect();
        node.attach(lane, 0, first);
        node.attach(lane, 1, more[0]);
        node.attach(lane, 2, more[1]);
        // Newer than the others now.
        node.attach(lane, 3, first);
        gateway.take();
        node.attach(lane, 4, more[2]);
        if conflict == Conflict::Takeover {
            assert_eq!(kicked(&gateway), [(1, CloseReason::TooManySessions)]);
            assert_eq!(online(&mut node), [2, 3, 4]);
            assert_eq!(ended(&node, CloseReason::TooManySessions), 1);
        } else {
            assert_eq!(refused(&gateway), [(4, code::TOO_MANY_SESSIONS)]);
            assert_eq!(online(&mut node), [1, 2, 3]);
        }
    }
}

#[test]
fn sessions_that_come_back_after_a_restart_are_judged_by_their_age_in_any_order() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut before = over(Arc::clone(&store), &Devices::default());
    let (lane, gateway) = before.gateway(1);
    let old = device(&mut before, None, ANDROID);
    let (new, web) = (device(&mut before, Some(old), ANDROID), device(&mut before, Some(old), WEB));
    let mut was = Vec::new();
    for (index, account) in [(1, old), (2, new), (3, web)] {
        before.attach(lane, index, account);
        was.push((index, account, signed_in(&gateway.take())));
    }
    drop(before);
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        for conflict in [Conflict::Takeover, Conflict::Refuse] {
            // The policy has become another one meanwhile.
            let mut node = over(Arc::clone(&store), &named(PolicyName::OnePerKind, conflict));
            let (lane, gateway) = node.gateway(1);
            for (index, account, attach) in order.map(|at| was[at]) {
                node.ask(announce(lane, index, attach, account)).unwrap();
            }
            assert_eq!(kicked(&gateway), [(1, CloseReason::OtherDevice)], "{order:?} {conflict:?}");
            assert_eq!(online(&mut node), [2, 3]);
            assert_eq!(ended(&node, CloseReason::OtherDevice), 1);
        }
    }
}

#[test]
fn a_session_that_signed_in_meanwhile_stays_when_an_older_one_comes_back() {
    let mut node = node(&named(PolicyName::One, Conflict::Refuse));
    let (one, first) = node.gateway(1);
    let (two, second) = node.gateway(2);
    let phone = device(&mut node, None, ANDROID);
    let other = device(&mut node, Some(phone), IOS);
    node.attach(one, 1, phone);
    let was = signed_in(&first.take());
    // Its gateway is out of reach, for longer than the lease.
    node.ask(Command::GatewayDown { lane: one }).unwrap();
    node.attach(two, 2, other);
    assert!(signed_in(&second.take()) > was);
    let (again, back) = node.gateway(1);
    node.ask(announce(again, 1, was, phone)).unwrap();
    assert_eq!(kicked(&back), [(1, CloseReason::OtherDevice)]);
    assert_eq!((kicked(&second), online(&mut node)), (vec![], vec![2]));
}

#[test]
fn an_ended_session_does_nothing_behind_the_sign_in_that_ended_it() {
    let mut node = node(&named(PolicyName::One, Conflict::Takeover));
    let (lane, gateway) = node.gateway(1);
    let phone = device(&mut node, None, ANDROID);
    let (other, bob) = (device(&mut node, Some(phone), IOS), node.account(None, "b"));
    node.attach(lane, 1, phone);
    let at = session(lane, 1, signed_in(&gateway.take()));
    let newer = Job { command: attach(lane, 2, other), reply_to: ReplyTo::Nobody };
    node.run(&mut vec![newer, session_send(phone, at, 1, bob.user, "late")]);
    assert_eq!(node.messages(bob.user, 0).1, 0);
    let is_stale = |item: &Down| matches!(item, Down::SendDone { result: Err(refusal), .. } if refusal.code == code::STALE);
    assert!(gateway.take().iter().any(is_stale));
}

#[test]
fn a_vouched_device_is_of_no_kind_and_gives_way_to_another_of_none() {
    let mut node = node(&named(PolicyName::OnePerKind, Conflict::Takeover));
    let (lane, gateway) = node.gateway(1);
    let known = device(&mut node, None, ANDROID);
    node.attach(lane, 1, known);
    for (index, device) in [(2, 1_u64 << 40), (3, 1 << 41)] {
        let vouched = Vouched {
            subject: gimbal_control::auth::Subject::Id(known.user),
            claimed: known.user,
            device: DeviceId::new(device),
            is_device_vouched: false,
            issued_at_ms: START_MS,
            expires_at_ms: i64::MAX,
        };
        let (vouched, peer) = (Box::new(vouched), String::new());
        node.ask(Command::AttachVouched { lane, session: slot(index), vouched, peer }).unwrap();
    }
    assert_eq!(kicked(&gateway), [(2, CloseReason::OtherDevice)]);
    assert_eq!(online(&mut node), [1, 3]);
}

#[test]
fn kinds_in_the_configuration_are_those_that_devices_register_with() {
    let groups = vec![vec![Kind::Unspecified, Kind::Web]];
    let mut node = node(&Devices { policy: PolicyName::OnePerGroup, groups, ..Devices::default() });
    let (lane, gateway) = node.gateway(1);
    let web = device(&mut node, None, WEB);
    let (bare, phone) = (device(&mut node, Some(web), 0), device(&mut node, Some(web), IOS));
    for (index, account) in [(1, web), (2, phone), (3, bare)] {
        node.attach(lane, index, account);
    }
    assert_eq!(kicked(&gateway), [(1, CloseReason::OtherDevice)]);
    assert_eq!(online(&mut node), [2, 3]);
}
