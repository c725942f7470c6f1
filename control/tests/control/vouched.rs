//! Callers that others vouch for: made at first sight, kept apart, ended by time.

use gimbal_codec::{Attach, CloseReason, DeviceId, UserId};
use gimbal_control::auth::Subject;
use gimbal_control::command::{Admitted, Command, DeviceInfo, Lane, Registered, Reply, Vouched};
use gimbal_control::error::RequestError;
use gimbal_rpc::link::{Down, Grant};

use crate::support::{Gateway, Node, START_MS, attach, dump, key, new_token, registered, session, slot};

/// Far above what is counted here, so that anybody may choose it.
const PHONE: u64 = (1 << 40) + 1;

fn id(user: u64) -> Subject {
    Subject::Id(UserId::new(user))
}

fn name(text: &str) -> Subject {
    Subject::Name { issuer: "https://accounts.example".into(), name: text.into() }
}

/// Said a second ago of a device that the caller names itself.
fn said(subject: Subject, device: u64) -> Vouched {
    Vouched {
        subject,
        claimed: UserId::new(0),
        device: DeviceId::new(device),
        is_device_vouched: false,
        issued_at_ms: START_MS - 1000,
        expires_at_ms: i64::MAX,
    }
}

fn admit(vouched: Vouched) -> Command {
    Command::Admit { vouched: Box::new(vouched) }
}

fn attach_vouched(lane: Lane, index: u32, vouched: Vouched) -> Command {
    Command::AttachVouched { lane, session: slot(index), vouched: Box::new(vouched), peer: String::new() }
}

fn admitted(reply: Result<Reply, RequestError>) -> Result<(u64, u64), RequestError> {
    match reply {
        Ok(Reply::Admitted(Admitted { user, device, .. })) => Ok((user.get(), device.get())),
        Ok(reply) => panic!("not {reply:?}"),
        Err(error) => Err(error),
    }
}

fn ask(node: &mut Node, vouched: Vouched) -> Result<(u64, u64), RequestError> {
    let reply = node.ask(admit(vouched));
    admitted(reply)
}

fn revoke(user: u64, before_ms: i64) -> Command {
    Command::RevokeTokens { user: UserId::new(user), before_ms, idempotency: None }
}

fn kicked(gateway: &Gateway) -> Vec<(u32, CloseReason)> {
    let kick = |item: Down| match item {
        Down::Kick { session, reason, .. } => Some((session.index(), reason)),
        _ => None,
    };
    gateway.take().into_iter().filter_map(kick).collect()
}

#[test]
fn a_name_gets_its_user_at_first_sight_and_keeps_it_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::rocks(dir.path());
    let anna = ask(&mut node, said(name("anna"), PHONE)).unwrap();
    assert_eq!(anna, (10_000, PHONE));
    let commits = node.counters.commits.get();
    assert_eq!(ask(&mut node, said(name("anna"), PHONE)), Ok(anna));
    assert_eq!(node.counters.commits.get(), commits, "a caller that is known waits for no disk");
    assert_eq!(ask(&mut node, said(name("ben"), PHONE + 1)), Ok((10_001, PHONE + 1)));
    let elsewhere = Subject::Name { issuer: "other".into(), name: "anna".into() };
    assert_eq!(ask(&mut node, said(elsewhere, PHONE + 2)), Ok((10_002, PHONE + 2)), "another issuer's");
    drop(node);
    let mut node = Node::rocks(dir.path());
    assert_eq!(ask(&mut node, said(name("anna"), PHONE)), Ok(anna));
    assert_eq!(node.account(None, "a").user.get(), 10_003);
}

#[test]
fn two_of_one_name_in_one_batch_are_one_user() {
    let mut node = Node::memory();
    let commands = vec![
        admit(said(name("anna"), PHONE)),
        admit(said(name("anna"), PHONE + 1)),
        admit(said(name("anna"), PHONE)),
        admit(said(name("ben"), PHONE)),
    ];
    let replies: Vec<_> = node.turn(commands).into_iter().map(admitted).collect();
    let expected =
        [Ok((10_000, PHONE)), Ok((10_000, PHONE + 1)), Ok((10_000, PHONE)), Err(RequestError::NotSignedIn)];
    assert_eq!(replies, expected, "a device is of the first who shows it");
    assert_eq!(ask(&mut node, said(name("ben"), PHONE + 2)), Ok((10_001, PHONE + 2)), "nothing was left");
}

#[test]
fn ids_that_an_issuer_names_and_ids_that_are_counted_never_meet() {
    let mut node = Node::memory();
    for user in 10_000..10_100 {
        let vouched = Vouched { is_device_vouched: true, ..said(id(user), user) };
        assert_eq!(ask(&mut node, vouched), Ok((user, user)));
    }
    for _ in 0..20 {
        let account = node.account(None, "a");
        assert!(account.user.get() >= 10_100 && account.device.get() >= 10_100, "{account:?}");
        let known = said(id(account.user.get()), account.device.get());
        assert_eq!(ask(&mut node, known).map(|(user, _)| user), Ok(account.user.get()));
    }
    let last = i64::MAX as u64;
    let vouched = Vouched { is_device_vouched: true, ..said(id(last), last) };
    assert_eq!(ask(&mut node, vouched), Ok((last, last)));
}

#[test]
fn nobody_takes_a_device_by_naming_it() {
    let mut node = Node::memory();
    let victim = node.account(None, "a");
    let before = dump(&*node.store);
    let stranger = |device| said(id(77), device);
    for (vouched, expected) in [
        (stranger(victim.device.get()), RequestError::NotSignedIn),
        (stranger(victim.device.get() + 1), RequestError::DeviceNotFound),
        (stranger((1 << 32) - 1), RequestError::DeviceNotFound),
        (stranger(0), RequestError::DeviceNotFound),
        (stranger(u64::MAX), RequestError::DeviceNotFound),
        (Vouched { is_device_vouched: true, ..stranger(victim.device.get()) }, RequestError::NotSignedIn),
        (Vouched { claimed: UserId::new(78), ..stranger(PHONE) }, RequestError::NotSignedIn),
        (Vouched { expires_at_ms: START_MS, ..stranger(PHONE) }, RequestError::NotSignedIn),
    ] {
        assert_eq!(ask(&mut node, vouched.clone()), Err(expected), "{vouched:?}");
    }
    assert_eq!(dump(&*node.store), before, "whoever is refused leaves nothing");
    assert!(ask(&mut node, said(id(victim.user.get()), victim.device.get())).is_ok(), "the owner's own");
}

#[test]
fn devices_made_at_first_sight_are_bounded_and_the_oldest_gives_way() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let own = node.account(None, "a");
    let user = own.user.get();
    for n in 0..256 {
        node.ask(attach_vouched(lane, n, said(id(user), PHONE + u64::from(n)))).unwrap();
    }
    assert_eq!(kicked(&gateway), []);
    ask(&mut node, said(id(user), PHONE + 256)).unwrap();
    assert_eq!(kicked(&gateway), [(0, CloseReason::TokenRevoked)], "the first is gone, with its session");
    ask(&mut node, said(id(user), PHONE + 100)).unwrap();
    assert_eq!(kicked(&gateway), [], "a known one takes no place");
    node.ask(attach(lane, 999, own)).unwrap();
    let again = ask(&mut node, said(id(user), PHONE));
    assert_eq!(again, Ok((user, PHONE)), "it may come again, in the place of the next");
    let owners =
        dump(&*node.store).into_iter().filter(|(table, key, _)| table.name() == "device" && key[2] == 4);
    assert_eq!(owners.count(), 256 + 1, "the one that was registered stays beside them");
}

#[test]
fn the_gateway_is_told_whose_the_session_is_and_until_when() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let vouched = Vouched { expires_at_ms: START_MS + 5000, ..said(name("anna"), PHONE) };
    node.ask(attach_vouched(lane, 1, vouched)).unwrap();
    let items = gateway.take();
    let [Down::SignedIn { grant, .. }] = items[..] else { panic!("{items:?}") };
    let (user, device) = (UserId::new(10_000), DeviceId::new(PHONE));
    assert_eq!(grant, Grant { user, device, expires_at_ms: START_MS + 5000 });
    let own = node.account(None, "a");
    node.ask(attach(lane, 2, own)).unwrap();
    let items = gateway.take();
    let [Down::SignedIn { grant, .. }] = items[..] else { panic!("{items:?}") };
    assert_eq!((grant.user, grant.expires_at_ms > START_MS), (own.user, true));
}

#[test]
fn a_revocation_by_time_ends_what_was_issued_before_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::rocks(dir.path());
    let (lane, gateway) = node.gateway(1);
    let own = node.account(None, "a");
    let user = own.user.get();
    let at = |issued_at_ms, device| Vouched { issued_at_ms, ..said(id(user), device) };
    node.now_ms += 60_000;
    let late = node.account(Some(own.user), "late");
    node.ask(attach(lane, 0, own)).unwrap();
    node.ask(attach_vouched(lane, 1, at(START_MS - 1000, PHONE))).unwrap();
    node.ask(attach_vouched(lane, 2, at(START_MS + 50_000, PHONE + 1))).unwrap();
    node.ask(attach_vouched(lane, 3, at(0, PHONE + 2))).unwrap();
    node.ask(attach(lane, 4, late)).unwrap();
    node.ask(attach_vouched(lane, 5, said(id(99), PHONE + 9))).unwrap();
    gateway.take();
    let reply = node.ask(revoke(user, START_MS + 1000)).unwrap();
    assert_eq!(reply, Reply::RevokedBefore { before_ms: START_MS + 1000, devices: 1 });
    let mut gone = kicked(&gateway);
    gone.sort_unstable_by_key(|(index, _)| *index);
    let revoked = CloseReason::TokenRevoked;
    assert_eq!(gone, [(0, revoked), (1, revoked), (3, revoked)], "older ones, and one of an unknown age");
    assert_eq!(ask(&mut node, at(START_MS + 999, PHONE)), Err(RequestError::NotSignedIn));
    assert!(ask(&mut node, at(START_MS + 1000, PHONE)).is_ok());
    let earlier = node.ask(revoke(user, START_MS)).unwrap();
    assert_eq!(earlier, Reply::RevokedBefore { before_ms: START_MS + 1000, devices: 0 }, "never back");
    drop(node);
    let mut node = Node::rocks(dir.path());
    node.now_ms += 60_000;
    assert_eq!(ask(&mut node, at(START_MS + 999, PHONE)), Err(RequestError::NotSignedIn), "for ever");
    let (lane, gateway) = node.gateway(1);
    node.ask(attach(lane, 0, own)).unwrap();
    node.ask(attach(lane, 1, late)).unwrap();
    let items = gateway.take();
    assert!(matches!(items[..], [Down::SignInRefused { .. }, Down::SignedIn { .. }]), "{items:?}");
    for (command, field) in [(revoke(user, START_MS + 60_001), "before_ms"), (revoke(user, -1), "before_ms")]
    {
        assert_eq!(node.ask(command).unwrap_err().field(), Some(field));
    }
    assert_eq!(node.ask(revoke(4711, 0)), Err(RequestError::UserNotFound));
    let once = |before_ms| Command::RevokeTokens { user: own.user, before_ms, idempotency: key("k") };
    let first = node.ask(once(0));
    node.now_ms += 1;
    assert_eq!(node.ask(once(0)), first, "a repeated call is the first one");
    assert_eq!(node.ask(once(1)), Err(RequestError::Conflict));
}

#[test]
fn a_session_that_is_announced_stays_unless_it_may_have_begun_with_a_revoked_token() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let announce = |lane, index, device: u64, was| Command::Announce {
        session: session(lane, index, was),
        user: UserId::new(7),
        device: DeviceId::new(device),
        peer: String::new(),
    };
    node.ask(attach_vouched(lane, 1, said(id(7), PHONE))).unwrap();
    node.ask(attach_vouched(lane, 2, said(id(7), PHONE + 1))).unwrap();
    let was: Vec<Attach> = gateway
        .take()
        .into_iter()
        .filter_map(|item| match item {
            Down::SignedIn { attach, .. } => Some(attach),
            _ => None,
        })
        .collect();
    let (lane, gateway) = node.gateway(1);
    node.ask(announce(lane, 1, PHONE, was[0])).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Announced { .. }]));
    // The link is down while the tokens are revoked.
    node.ask(Command::GatewayDown { lane }).unwrap();
    node.ask(revoke(7, 0)).unwrap();
    let (lane, gateway) = node.gateway(1);
    for (index, device) in [(1, PHONE), (2, PHONE + 1)] {
        node.ask(announce(lane, index, device, was[index as usize - 1])).unwrap();
        assert_eq!(kicked(&gateway), [(index, CloseReason::TokenRevoked)]);
    }
    node.now_ms += 2000;
    let fresh = Vouched { issued_at_ms: node.now_ms, ..said(id(7), PHONE) };
    node.ask(attach_vouched(lane, 1, fresh)).unwrap();
    let items = gateway.take();
    let [Down::SignedIn { attach, .. }] = items[..] else { panic!("{items:?}") };
    let (lane, gateway) = node.gateway(1);
    node.ask(announce(lane, 1, PHONE, attach)).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Announced { .. }]));
}

#[test]
fn a_revoked_device_is_closed_to_older_tokens_and_open_to_newer_ones() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    node.ask(attach_vouched(lane, 1, said(id(7), PHONE))).unwrap();
    gateway.take();
    let (user, device) = (UserId::new(7), DeviceId::new(PHONE));
    let revoke = Command::RevokeToken { user, device, idempotency: None };
    assert_eq!(node.ask(revoke), Ok(Reply::Revoked { revoked: true }));
    assert_eq!(kicked(&gateway), [(1, CloseReason::TokenRevoked)]);
    assert_eq!(ask(&mut node, said(id(7), PHONE)), Err(RequestError::NotSignedIn), "a replayed token");
    assert!(ask(&mut node, said(id(7), PHONE + 1)).is_ok(), "another device of the user");
    let fresh = Vouched { issued_at_ms: START_MS, ..said(id(7), PHONE) };
    assert!(ask(&mut node, fresh).is_ok());
    // A token of ours for the same device leaves that as it is.
    let info = DeviceInfo { id: Some(device), ..DeviceInfo::default() };
    let token = new_token("own", node.now_ms);
    let own = Command::RegisterDevice { user: Some(user), device: info, token, idempotency: None };
    let Registered { is_new, .. } = registered(node.ask(own));
    assert!(!is_new);
    assert_eq!(ask(&mut node, said(id(7), PHONE)), Err(RequestError::NotSignedIn));
}
