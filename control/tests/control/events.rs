//! The event stream: in the same commit as its cause, sessions in the next one, trimmed from its beginning.

use gimbal_codec::{Seq, UserId};
use gimbal_control::command::social::{Actor, Social};
use gimbal_control::command::{Command, Reply, UserPresence};
use gimbal_control::error::RequestError;
use gimbal_control::event::read::{self, Filter};
use gimbal_control::event::{Act, Kinds};
use gimbal_control::presence;
use gimbal_control::store::value::{EventKind, EventRecord};

use crate::support::{Account, Node, attach, bare, session, signed_in};

/// Kind, user and, of a message, its seq.
type Brief = (EventKind, UserId, u64);

fn all(node: &Node, after: u64) -> Vec<(u64, EventRecord)> {
    let mut found = Vec::new();
    read::scan(&*node.store.snapshot(), after, 10_000, |number, event| found.push((number, event))).unwrap();
    found
}

fn brief(node: &Node, after: u64) -> Vec<Brief> {
    all(node, after).iter().map(|(_, event)| (event.kind, event.user, event.seq.get())).collect()
}

fn newest(node: &Node) -> u64 {
    all(node, 0).last().map_or(0, |(number, _)| *number)
}

#[test]
fn each_change_is_in_the_stream_once_and_in_order() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    let made: Vec<(UserId, u8)> = all(&node, 0).iter().map(|(_, event)| (event.user, event.act)).collect();
    let (user, device) = (Act::UserMade as u8, Act::DeviceRegistered as u8);
    assert_eq!(made, [(one.user, user), (one.user, device), (two.user, user), (two.user, device)]);

    let start = newest(&node);
    node.send(one, 1, two.user, "hello").unwrap();
    node.send(one, 1, two.user, "hello").unwrap();
    let (message, missed) = (EventKind::Message, EventKind::OfflineMessage);
    assert_eq!(brief(&node, start), [(message, two.user, 1), (missed, two.user, 1)], "a repeat is no event");
    let (_, event) = all(&node, start)[0];
    assert_eq!((event.other, event.device, event.command), (one.user, one.device, 7));

    let start = newest(&node);
    node.ask(Command::Ack { sender: bare(two), seq: Seq::new(1) }).unwrap();
    node.ask(Command::Ack { sender: bare(two), seq: Seq::new(1) }).unwrap();
    assert_eq!(brief(&node, start), [(EventKind::Ack, two.user, 1)]);

    let start = newest(&node);
    let block = Social::Block(two.user);
    let block = Command::Social { by: Actor::Device(bare(one)), act: Box::new(block), idempotency: None };
    node.ask(block).unwrap();
    assert_eq!(node.send(two, 1, one.user, "refused"), Err(RequestError::Blocked));
    let acts: Vec<_> =
        all(&node, start).iter().map(|(_, event)| (event.act, event.user, event.other)).collect();
    assert_eq!(acts, [(Act::Blocked as u8, one.user, two.user)], "what is refused is no event");
}

#[test]
fn sessions_ride_the_next_commit_before_what_was_done_after_them() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    let start = newest(&node);
    node.attach(lane, 1, two);
    assert_eq!(brief(&node, start), [], "a sign-in does not wait for the disk");
    assert!(node.engine.has_changes());
    node.send(one, 1, two.user, "hello").unwrap();
    let (online, message) = (EventKind::Online, EventKind::Message);
    assert_eq!(brief(&node, start), [(online, two.user, 0), (message, two.user, 1)], "and two was online");
    assert!(!node.engine.has_changes());

    let start = newest(&node);
    let first = signed_in(&gateway.take());
    node.attach(lane, 2, two);
    node.now_ms += 7;
    let gone = Command::Detach { session: session(lane, 1, first), user: two.user, device: two.device };
    node.ask(gone).unwrap();
    let second = signed_in(&gateway.take());
    let gone = Command::Detach { session: session(lane, 2, second), user: two.user, device: two.device };
    node.ask(gone).unwrap();
    assert_eq!(presence::last_seen(&*node.store.snapshot(), two.user), Ok(0));
    node.engine.flush_changes(node.now_ms);
    let offline = EventKind::Offline;
    assert_eq!(brief(&node, start), [(online, two.user, 0), (offline, two.user, 0)], "a takeover is no end");
    assert_eq!(presence::last_seen(&*node.store.snapshot(), two.user), Ok(node.now_ms));
    node.engine.flush_changes(node.now_ms);
    assert_eq!(brief(&node, start).len(), 2);
}

#[test]
fn devices_that_do_not_come_back_after_a_restart_are_offline() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::rocks(dir.path());
    let (lane, _gateway) = node.gateway(1);
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    node.attach(lane, 1, one);
    node.attach(lane, 2, two);
    node.engine.flush_changes(node.now_ms);
    let start = newest(&node);
    drop(node);

    let mut node = Node::rocks(dir.path());
    let (lane, _gateway) = node.gateway(1);
    node.ask(attach(lane, 1, one)).unwrap();
    let devices = vec![(one.user, one.device), (two.user, two.device)];
    node.ask(Command::PresumeOffline { devices: devices.clone() }).unwrap();
    node.ask(Command::PresumeOffline { devices }).unwrap();
    node.engine.flush_changes(node.now_ms);
    let expected = [(EventKind::Online, one.user, 0), (EventKind::Offline, two.user, 0)];
    assert_eq!(brief(&node, start), expected, "once, however often it is presumed");
    let users = vec![two.user, one.user];
    let Ok(Reply::Presence(now)) = node.ask(Command::Presence { users }) else { panic!("an answer") };
    assert_eq!(now[0], UserPresence { user: two.user, online: vec![] });
    assert_eq!(now[1].online.iter().map(|(device, _)| *device).collect::<Vec<_>>(), [one.device]);
}

#[test]
fn what_is_trimmed_is_gone_on_both_stores_and_a_cursor_before_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for mut node in [Node::memory(), Node::rocks(dir.path())] {
        let one = node.account(None, "one");
        for id in 1..=10 {
            node.send(one, id, one.user, "text").unwrap();
        }
        let numbers: Vec<u64> = all(&node, 0).iter().map(|(number, _)| *number).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "without a gap");
        let through = numbers[5];
        node.ask(Command::TrimEvents { through }).unwrap();
        node.ask(Command::TrimEvents { through: numbers[2] }).unwrap();
        let kept: Vec<u64> = all(&node, 0).iter().map(|(number, _)| *number).collect();
        assert_eq!(kept, numbers[6..]);
        let (view, any) = (node.store.snapshot(), Filter::default());
        assert_eq!(read::page(&*view, numbers[4], &any).unwrap_err(), RequestError::TooOld);
        assert_eq!(read::page(&*view, through, &any).unwrap().events.len(), kept.len());
        assert_eq!(read::page(&*view, 0, &any).unwrap().events.len(), kept.len());
        let messages = Filter { kinds: vec![EventKind::Message], contents: true, ..any };
        let page = read::page(&*view, 0, &messages).unwrap();
        assert!(page.events.iter().all(|shown| shown.content.as_deref() == Some(b"text".as_slice())));
        assert_eq!(page.last, numbers.last().copied());
    }
}

#[test]
fn kinds_that_are_not_wanted_are_not_written() {
    let mut node = Node::memory();
    node.engine.set_kinds(Kinds::of(&[EventKind::Ack]));
    let (lane, _gateway) = node.gateway(1);
    let one: Account = node.account(None, "one");
    node.attach(lane, 1, one);
    node.send(one, 1, one.user, "text").unwrap();
    node.ask(Command::Ack { sender: bare(one), seq: Seq::new(1) }).unwrap();
    node.engine.flush_changes(node.now_ms);
    assert_eq!(brief(&node, 0), [(EventKind::Ack, one.user, 1)]);
    assert!(!node.engine.has_changes());
}
