//! Registration, tokens, idempotency.

use gimbal_codec::{CloseReason, DeviceId, UserId};
use gimbal_control::command::{Command, DeviceInfo, Registered, Reply, TokenHash};
use gimbal_control::error::RequestError;
use gimbal_control::idempotency::KEPT_MS;
use gimbal_control::sign_in;
use gimbal_control::store::Table;
use gimbal_control::store::key::OfDevice;
use gimbal_control::store::value::{DeviceRecord, Value as _};
use gimbal_rpc::link::Down;

use crate::support::{Account, Node, START_MS, TOKEN_LIFE_MS, dump, key, new_token, registered};

fn sign_in_by(node: &Node, phone: &str, device: Option<DeviceId>, secret: &str) -> Command {
    let device = DeviceInfo { id: device, ..DeviceInfo::default() };
    Command::SignIn { phone: phone.into(), device, token: new_token(secret, node.now_ms), holds: None }
}

fn authenticate(node: &Node, user: UserId, device: DeviceId, secret: &str) -> Result<(), RequestError> {
    let token = TokenHash::of(secret.as_bytes());
    sign_in::authenticate(&*node.store.snapshot(), user, device, &token, node.now_ms)
}

#[test]
fn a_phone_number_makes_one_user_and_each_new_device_one_more() {
    let mut node = Node::memory();
    let first = registered(node.ask(sign_in_by(&node, "+491", None, "a")));
    assert_eq!(first, Registered { is_new: true, user: UserId::new(10_000), device: DeviceId::new(10_000) });
    let again = registered(node.ask(sign_in_by(&node, "+491", None, "b")));
    assert_eq!(again, Registered { is_new: false, user: first.user, device: DeviceId::new(10_001) });
    let other = registered(node.ask(sign_in_by(&node, "+492", None, "c")));
    assert_eq!(other, Registered { is_new: true, user: UserId::new(10_001), device: DeviceId::new(10_002) });
    assert!(authenticate(&node, first.user, first.device, "a").is_ok());
    assert!(authenticate(&node, first.user, again.device, "b").is_ok());
}

#[test]
fn two_sign_ins_of_one_batch_share_the_user_that_the_first_made() {
    let mut node = Node::memory();
    let commands = vec![sign_in_by(&node, "+491", None, "a"), sign_in_by(&node, "+491", None, "b")];
    let replies: Vec<Registered> = node.turn(commands).into_iter().map(registered).collect();
    assert_eq!(replies[0].user, replies[1].user);
    assert_ne!(replies[0].device, replies[1].device);
    assert!(replies[0].is_new && !replies[1].is_new);
}

#[test]
fn a_new_sign_in_replaces_the_token_of_the_same_device() {
    let mut node = Node::memory();
    let first = registered(node.ask(sign_in_by(&node, "+491", None, "a")));
    node.now_ms += 1;
    let again = registered(node.ask(sign_in_by(&node, "+491", Some(first.device), "b")));
    assert_eq!(again.device, first.device);
    let at = OfDevice::Record.key(first.user, first.device);
    let stored = node.store.get(Table::Device, &at).unwrap().unwrap();
    assert_eq!(DeviceRecord::from_bytes(&stored).unwrap().created_at_ms, START_MS, "it was made then");
    let old = authenticate(&node, first.user, first.device, "a");
    assert_eq!(old, Err(RequestError::NotSignedIn));
    assert!(authenticate(&node, first.user, first.device, "b").is_ok());
}

#[test]
fn a_device_that_the_backend_registers_for_another_user_moves_wholly() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let one = node.account(None, "one");
    let two = node.account(None, "two");
    node.attach(lane, 1, one);
    gateway.take();
    let device = DeviceInfo { id: Some(one.device), ..DeviceInfo::default() };
    let token = new_token("moved", node.now_ms);
    let command = Command::RegisterDevice { user: Some(two.user), device, token, idempotency: None };
    let moved = registered(node.ask(command));
    assert_eq!((moved.user, moved.device), (two.user, one.device));
    let items = gateway.take();
    assert!(matches!(items[..], [Down::Kick { reason: CloseReason::TokenRevoked, .. }]), "{items:?}");
    assert!(authenticate(&node, one.user, one.device, "one").is_err(), "the old user's record is gone");
    assert!(authenticate(&node, two.user, one.device, "one").is_err(), "the old token is gone");
    assert!(authenticate(&node, two.user, one.device, "moved").is_ok());
    assert_eq!(node.send(one, 1, two.user, "late"), Err(RequestError::NotSignedIn));
}

#[test]
fn nobody_takes_another_users_device_by_naming_its_id() {
    let mut node = Node::memory();
    let victim = registered(node.ask(sign_in_by(&node, "+491", None, "a")));
    let guess = registered(node.ask(sign_in_by(&node, "+492", Some(victim.device), "b")));
    assert_ne!(guess.device, victim.device, "a stranger gets a device of his own");
    assert!(authenticate(&node, victim.user, victim.device, "a").is_ok());
    let mut shown = sign_in_by(&node, "+493", Some(victim.device), "c");
    if let Command::SignIn { holds, .. } = &mut shown {
        *holds = Some(TokenHash::of(b"a"));
    }
    let moved = registered(node.ask(shown));
    assert_eq!(moved.device, victim.device, "whoever holds the device's token may move it");
    node.ask(Command::RevokeToken { user: moved.user, device: moved.device, idempotency: None }).unwrap();
    let mut after = sign_in_by(&node, "+494", Some(victim.device), "d");
    if let Command::SignIn { holds, .. } = &mut after {
        *holds = Some(TokenHash::of(b"c"));
    }
    let signed_out = registered(node.ask(after));
    assert_ne!(signed_out.device, victim.device, "a revoked token moves nothing");
    node.now_ms += TOKEN_LIFE_MS;
    let expired = registered(node.ask(sign_in_by(&node, "+495", Some(signed_out.device), "e")));
    assert_ne!(expired.device, signed_out.device, "nor does an expired device belong to whoever names it");
    let mut late = sign_in_by(&node, "+496", Some(signed_out.device), "f");
    if let Command::SignIn { holds, .. } = &mut late {
        *holds = Some(TokenHash::of(b"d"));
    }
    let late = registered(node.ask(late));
    assert_eq!(late.device, signed_out.device, "but to the holder of its last token");
}

#[test]
fn a_revoked_or_expired_token_opens_nothing() {
    let mut node = Node::memory();
    let account = node.account(None, "a");
    let Account { user, device, .. } = account;
    assert_eq!(authenticate(&node, user, device, "guess"), Err(RequestError::NotSignedIn));
    assert_eq!(authenticate(&node, UserId::new(0), device, "a"), Err(RequestError::NotSignedIn));
    assert_eq!(authenticate(&node, UserId::new(u64::MAX), device, "a"), Err(RequestError::NotSignedIn));
    let revoke = |key_text| Command::RevokeToken { user, device, idempotency: key(key_text) };
    assert_eq!(node.ask(revoke("once")), Ok(Reply::Revoked { revoked: true }));
    assert_eq!(node.ask(revoke("once")), Ok(Reply::Revoked { revoked: true }), "the first answer");
    assert_eq!(node.ask(revoke("")), Ok(Reply::Revoked { revoked: false }));
    assert_eq!(authenticate(&node, user, device, "a"), Err(RequestError::NotSignedIn));
    let other = node.account(None, "b");
    node.now_ms += TOKEN_LIFE_MS;
    assert_eq!(authenticate(&node, other.user, other.device, "b"), Err(RequestError::NotSignedIn));
    let unknown = Command::RevokeToken { user, device: DeviceId::new(99), idempotency: None };
    assert_eq!(node.ask(unknown), Err(RequestError::DeviceNotFound));
}

#[test]
fn a_repeated_registration_returns_the_same_ids_and_rotates_the_token() {
    let mut node = Node::memory();
    let register = |node: &Node, secret: &str, model: &str| Command::RegisterDevice {
        user: None,
        device: DeviceInfo { model: model.into(), ..DeviceInfo::default() },
        token: new_token(secret, node.now_ms),
        idempotency: key("k"),
    };
    let first = registered(node.ask(register(&node, "a", "m")));
    let again = registered(node.ask(register(&node, "b", "m")));
    assert_eq!(first, again);
    assert!(authenticate(&node, first.user, first.device, "a").is_err());
    assert!(authenticate(&node, first.user, first.device, "b").is_ok());
    assert_eq!(node.ask(register(&node, "c", "other")), Err(RequestError::Conflict));
    let as_push = crate::support::push(&[first.user], "x", "k");
    assert_eq!(node.ask(as_push), Err(RequestError::Conflict), "one space of keys for all methods");
    let secret = TokenHash::of(b"b");
    let stored = |(table, _, value): &(gimbal_control::store::Table, Vec<u8>, Vec<u8>)| {
        *table == gimbal_control::store::Table::Idem
            && value.windows(32).any(|window| window == &secret.as_bytes()[..])
    };
    assert!(!dump(&*node.store).iter().any(stored), "no secret is remembered with the answer");
    node.now_ms += KEPT_MS;
    let fresh = registered(node.ask(register(&node, "d", "other")));
    assert_ne!(fresh.user, first.user, "an expired key is a new one");
}

#[test]
fn expired_answers_are_removed_with_later_ones() {
    let mut node = Node::memory();
    let user = node.account(None, "a").user;
    let count = |node: &Node| dump(&*node.store).iter().filter(|entry| entry.0.name() == "idem").count();
    for n in 0..40 {
        node.ask(crate::support::push(&[user], "x", &format!("old-{n}"))).unwrap();
    }
    assert_eq!(count(&node), 80);
    node.now_ms += KEPT_MS + 1;
    // Many keys, so that every partition of an old key is met again.
    for n in 0..20_000 {
        node.ask(crate::support::push(&[UserId::new(1)], "x", &format!("new-{n}"))).unwrap();
    }
    let old = |entry: &(gimbal_control::store::Table, Vec<u8>, Vec<u8>)| {
        entry.1.windows(4).any(|window| window == b"old-")
    };
    assert!(!dump(&*node.store).iter().any(old));
    assert_eq!(count(&node), 40_000);
}

#[test]
fn bad_fields_are_named_and_change_nothing() {
    let mut node = Node::memory();
    let before = dump(&*node.store);
    let long = "1".repeat(33);
    for phone in ["", "+", "12a", "12 3", long.as_str()] {
        let Err(error) = node.ask(sign_in_by(&node, phone, None, "a")) else { panic!("{phone} is refused") };
        assert_eq!(error.field(), Some("phone_number"));
    }
    let unknown = sign_in_by(&node, "+1", Some(DeviceId::new(4711)), "a");
    assert_eq!(node.ask(unknown), Err(RequestError::DeviceNotFound));
    let device = DeviceInfo { brand: "b".repeat(257), ..DeviceInfo::default() };
    let token = new_token("a", node.now_ms);
    let long = Command::RegisterDevice { user: None, device, token, idempotency: None };
    assert_eq!(node.ask(long).unwrap_err().field(), Some("device"));
    let device = DeviceInfo::default();
    let nobody = Command::RegisterDevice { user: Some(UserId::new(5)), device, token, idempotency: None };
    assert_eq!(node.ask(nobody), Err(RequestError::UserNotFound));
    assert_eq!(dump(&*node.store), before);
    assert_eq!(node.counters.commits.get(), 0, "a refusal needs no commit");
}
