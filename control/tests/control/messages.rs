//! Sends, pushes, acks, pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use gimbal_codec::{MessageId, Seq, UserId};
use gimbal_control::command::{CONTENT_BYTES_MAX, Command, PUSH_USERS_MAX, Pushed, Reply};
use gimbal_control::dedup::{self, FORGOTTEN_MAX, SLACK, window};
use gimbal_control::error::RequestError;
use gimbal_control::log::Record;
use gimbal_control::partition::Partition;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::store::{Store, StoreError, Table, View, Visit};
use gimbal_rpc::link::Down;

use crate::support::{Account, Node, TOKEN_LIFE_MS, bare, dump, push, send};

fn pushed(reply: Result<Reply, RequestError>) -> Pushed {
    match reply {
        Ok(Reply::Pushed(pushed)) => pushed,
        reply => panic!("not {reply:?}"),
    }
}

/// Two users of one partition, and one of another.
fn neighbours(node: &mut Node) -> (Account, Account, Account) {
    let mut known: Vec<Account> = Vec::new();
    loop {
        let account = node.account(None, "t");
        let home = Partition::of_user(account.user);
        if let Some(other) = known.iter().find(|other| Partition::of_user(other.user) == home) {
            let third = known.iter().find(|third| Partition::of_user(third.user) != home).unwrap();
            return (*other, account, *third);
        }
        known.push(account);
    }
}

#[test]
fn seqs_are_gapless_from_one_and_a_repeat_gets_the_first_answer() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let first = node.send(alice, 1, bob.user, "one").unwrap();
    assert_eq!((first.seq, first.duplicate), (Seq::new(1), false));
    let commits = node.counters.commits.get();
    node.now_ms += 5;
    let again = node.send(alice, 1, bob.user, "one").unwrap();
    assert_eq!(
        (again.message_id, again.seq, again.created_at_ms),
        (first.message_id, first.seq, first.created_at_ms)
    );
    assert!(again.duplicate);
    assert_eq!(node.counters.commits.get(), commits, "a repeat commits nothing");
    assert_eq!(
        node.send(alice, 9, bob.user, "two").unwrap().seq,
        Seq::new(2),
        "ids may have gaps, seqs have none"
    );
    assert_eq!(node.send(alice, 5, bob.user, "three").unwrap().seq, Seq::new(3), "ids may come late");
    let other = node.account(Some(alice.user), "c");
    assert!(!node.send(other, 1, bob.user, "one").unwrap().duplicate, "each device counts by itself");
    let expected = ["one", "two", "three", "one"].iter().zip(1..).map(|(text, seq)| (seq, text.to_string()));
    assert_eq!(node.messages(bob.user, 0), (expected.collect(), 4));
}

#[test]
fn the_same_id_with_another_body_is_a_conflict_within_a_partition() {
    let mut node = Node::memory();
    let (one, neighbour, elsewhere) = neighbours(&mut node);
    node.send(elsewhere, 1, one.user, "text").unwrap();
    assert_eq!(node.send(elsewhere, 1, one.user, "other"), Err(RequestError::Conflict));
    assert_eq!(
        node.send(elsewhere, 1, neighbour.user, "text"),
        Err(RequestError::Conflict),
        "another recipient"
    );
    let mut other_type = send(elsewhere, 1, one.user, "text");
    if let Command::Send { command, .. } = &mut other_type {
        *command = -8;
    }
    assert_eq!(node.ask(other_type), Err(RequestError::Conflict));
    let far = node.send(elsewhere, 1, elsewhere.user, "text").unwrap();
    assert!(!far.duplicate, "another partition decides for itself");
}

#[test]
fn repeats_within_one_batch_are_recognised() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let batch = vec![
        send(alice, 3, bob.user, "x"),
        send(alice, 3, bob.user, "x"),
        send(alice, 2, bob.user, "y"),
        send(alice, 3, bob.user, "z"),
        send(alice, 2, bob.user, "y"),
    ];
    let replies: Vec<_> = node
        .turn(batch)
        .into_iter()
        .map(|reply| match reply {
            Ok(Reply::Sent(result)) => Ok((result.seq.get(), result.duplicate)),
            Ok(reply) => panic!("not {reply:?}"),
            Err(error) => Err(error),
        })
        .collect();
    assert_eq!(
        replies,
        [Ok((1, false)), Ok((1, true)), Ok((2, false)), Err(RequestError::Conflict), Ok((2, true))]
    );
}

fn window_is_kept_and_trimmed(mut node: Node) {
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let window = window(alice.device);
    let last = window + SLACK;
    for ids in (1..=last).collect::<Vec<u64>>().chunks(500) {
        for reply in node.turn(ids.iter().map(|id| send(alice, *id, bob.user, "x")).collect()) {
            reply.unwrap();
        }
    }
    assert_eq!(node.send(alice, 1, bob.user, "x"), Err(RequestError::TooOld));
    assert_eq!(node.send(alice, SLACK, bob.user, "x"), Err(RequestError::TooOld));
    assert!(node.send(alice, SLACK + 1, bob.user, "x").unwrap().duplicate);
    assert!(node.send(alice, last, bob.user, "x").unwrap().duplicate);
    assert_eq!(node.messages(bob.user, 0).1, last, "nothing refused was stored");
    let kept = dump(&*node.store).iter().filter(|entry| entry.0 == Table::Dedup).count() as u64;
    assert_eq!(kept, window + 1, "the window and its head");
    // Several trims within one batch, out of order.
    let batch = (last + 1..last + 1 + 3 * SLACK).rev().map(|id| send(alice, id, bob.user, "x")).collect();
    let stored = node.turn(batch).iter().filter(|reply| reply.is_ok()).count() as u64;
    assert_eq!(node.messages(bob.user, 0).1, last + stored);
    let kept = dump(&*node.store).iter().filter(|entry| entry.0 == Table::Dedup).count() as u64;
    assert!((window + 1..window + SLACK + 1).contains(&kept), "{kept}");
}

/// Forgets what was answered before a time, as a sweep does; how many ids.
fn sweep(node: &mut Node, before_ms: i64) -> usize {
    let (found, next) = dedup::aged(&*node.store.snapshot(), &[], before_ms, 100).unwrap();
    assert_eq!(next, None, "few have sent");
    let forget = |scope| Command::Forget { scope, before_ms };
    let replies = node.turn(found.into_iter().map(forget).collect());
    let count = |reply| match reply {
        Ok(Reply::Forgot(count)) => count,
        reply => panic!("not {reply:?}"),
    };
    replies.into_iter().map(count).sum()
}

fn age_ends_what_is_remembered(mut node: Node) {
    let (alice, bob, carol) = neighbours(&mut node);
    let old_ms = node.now_ms;
    for id in 1..=150 {
        node.send(alice, id, bob.user, "x").unwrap();
        node.send(bob, id, carol.user, "x").unwrap();
    }
    node.now_ms += 10_000;
    node.send(alice, 155, bob.user, "x").unwrap();
    // Late: it is older than 155 by its id alone.
    node.send(alice, 152, bob.user, "x").unwrap();
    let before = node.messages(bob.user, 0);
    assert_eq!(sweep(&mut node, old_ms), 0, "nothing is older");
    assert_eq!(sweep(&mut node, old_ms + 1), 2 * FORGOTTEN_MAX);
    assert_eq!(sweep(&mut node, old_ms + 1), 300 - 2 * FORGOTTEN_MAX);
    assert_eq!(sweep(&mut node, old_ms + 1), 0);
    let kept = dump(&*node.store).iter().filter(|entry| entry.0 == Table::Dedup).count();
    assert_eq!(kept, 2 + 2, "two heads, and what is younger");
    for id in [1, 149, 150] {
        assert_eq!(node.send(alice, id, bob.user, "x"), Err(RequestError::TooOld));
        assert_eq!(node.send(bob, id, carol.user, "x"), Err(RequestError::TooOld));
    }
    assert!(node.send(alice, 152, bob.user, "x").unwrap().duplicate);
    assert!(node.send(alice, 155, bob.user, "x").unwrap().duplicate);
    assert_eq!(node.messages(bob.user, 0), before, "nothing was stored again");
    assert!(!node.send(alice, 154, bob.user, "new").unwrap().duplicate);
    assert!(!node.send(bob, 151, carol.user, "new").unwrap().duplicate);
}

#[test]
fn what_is_remembered_of_a_sender_ends_with_its_age_in_memory() {
    age_ends_what_is_remembered(Node::memory());
}

#[test]
fn what_is_remembered_of_a_sender_ends_with_its_age_in_rocks() {
    let dir = tempfile::tempdir().unwrap();
    age_ends_what_is_remembered(Node::rocks(dir.path()));
}

#[test]
fn a_sender_that_is_forgotten_while_it_sends_loses_no_id_of_the_same_batch() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let ids = [1, 2, 3, 7];
    node.turn(ids.map(|id| send(alice, id, bob.user, "x")).into());
    node.now_ms += 1;
    let before_ms = node.now_ms;
    let (found, _) = dedup::aged(&*node.store.snapshot(), &[], before_ms, 100).unwrap();
    let forget = || Command::Forget { scope: found[0], before_ms };
    let batch =
        vec![send(alice, 5, bob.user, "between"), forget(), forget(), send(alice, 5, bob.user, "between")];
    let replies = node.turn(batch);
    assert_eq!((&replies[1], &replies[2]), (&Ok(Reply::Forgot(3)), &Ok(Reply::Forgot(0))));
    assert!(matches!(&replies[3], Ok(Reply::Sent(sent)) if sent.duplicate), "{replies:?}");
    assert!(node.send(alice, 7, bob.user, "x").unwrap().duplicate, "it lies behind what is young");
    assert_eq!(node.send(alice, 3, bob.user, "x"), Err(RequestError::TooOld));
    assert_eq!(node.messages(bob.user, 0).1, 5);
}

#[test]
fn ids_below_the_window_are_refused_and_their_entries_removed_in_memory() {
    window_is_kept_and_trimmed(Node::memory());
}

#[test]
fn ids_below_the_window_are_refused_and_their_entries_removed_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    window_is_kept_and_trimmed(Node::rocks(dir.path()));
}

#[test]
fn bad_sends_are_refused_and_change_nothing() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let before = dump(&*node.store);
    assert_eq!(node.send(alice, 0, bob.user, "x").unwrap_err().field(), Some("client_message_id"));
    for nobody in [0, 1, 9_999, u64::MAX] {
        assert_eq!(node.send(alice, 1, UserId::new(nobody), "x"), Err(RequestError::UserNotFound));
    }
    let long = "x".repeat(CONTENT_BYTES_MAX + 1);
    assert_eq!(node.send(alice, 1, bob.user, &long), Err(RequestError::ContentTooLarge));
    let stranger = Account { user: bob.user, ..alice };
    assert_eq!(node.send(stranger, 1, bob.user, "x"), Err(RequestError::NotSignedIn));
    assert_eq!(dump(&*node.store), before);
    assert!(node.send(alice, 1, bob.user, &long[1..]).is_ok(), "the limit itself is allowed");
}

#[test]
fn a_push_reports_each_user_and_one_failure_harms_no_other() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (one, two) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(lane, 1, one);
    node.attach(lane, 2, two);
    gateway.take();
    let users = [one.user, UserId::new(3), two.user, one.user];
    let reply = pushed(node.ask(push(&users, "hello", "")));
    let seq = Ok(Seq::new(1));
    let expected = [
        (one.user, seq),
        (UserId::new(3), Err(RequestError::UserNotFound)),
        (two.user, seq),
        (one.user, seq),
    ];
    assert_eq!(reply.users, expected);
    assert!(!reply.message_id.is_none());
    let items = gateway.take();
    let [Down::Deliver { body, targets }] = &items[..] else { panic!("one item for one body: {items:?}") };
    assert_eq!((body.message_id, targets.len()), (reply.message_id, 2));
    assert_eq!(node.messages(one.user, 0), (vec![(1, "hello".into())], 1));
}

#[test]
fn a_repeated_push_gets_the_first_answer_and_delivers_nothing() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "a"), node.account(None, "b"));
    let users = [one.user, UserId::new(3), two.user];
    let first = pushed(node.ask(push(&users, "hello", "k")));
    let again = pushed(node.ask(push(&users, "hello", "k")));
    assert_eq!(first, again);
    assert_eq!(node.messages(one.user, 0).1, 1);
    assert_eq!(node.ask(push(&users, "other", "k")), Err(RequestError::Conflict));
    assert_eq!(node.ask(push(&users[..1], "hello", "k")), Err(RequestError::Conflict));
}

#[test]
fn a_push_has_one_to_512_users() {
    let mut node = Node::memory();
    let one = node.account(None, "a");
    assert_eq!(node.ask(push(&[], "x", "")).unwrap_err().field(), Some("user_ids"));
    let many = vec![one.user; PUSH_USERS_MAX + 1];
    assert_eq!(node.ask(push(&many, "x", "")).unwrap_err().field(), Some("user_ids"));
    assert!(node.ask(push(&many[1..], "x", "")).is_ok());
}

#[test]
fn a_long_body_is_stored_once_for_the_mailboxes_of_a_partition() {
    let mut node = Node::memory();
    let (one, neighbour, elsewhere) = neighbours(&mut node);
    let text = "long ".repeat(100);
    let reply = pushed(node.ask(push(&[elsewhere.user, neighbour.user, one.user], &text, "")));
    assert!(reply.users.iter().all(|(_, verdict)| *verdict == Ok(Seq::new(1))));
    let bodies = |node: &Node| dump(&*node.store).iter().filter(|entry| entry.0 == Table::Message).count();
    assert_eq!(bodies(&node), 1);
    for user in [one.user, neighbour.user, elsewhere.user] {
        assert_eq!(node.messages(user, 0), (vec![(1, text.clone())], 1));
    }
    node.ask(push(&[neighbour.user, one.user], "short", "")).unwrap();
    assert_eq!(bodies(&node), 1, "a short one is copied");
}

#[test]
fn a_transient_push_reaches_sessions_and_stores_nothing() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let (one, two) = (node.account(None, "a"), node.account(None, "b"));
    node.attach(lane, 1, one);
    gateway.take();
    let before = dump(&*node.store);
    let command = Command::Push {
        users: vec![one.user, two.user, UserId::new(3)],
        command: 1,
        content: Bytes::from_static(b"now"),
        transient: true,
        idempotency: None,
    };
    let reply = pushed(node.ask(command));
    assert_eq!(reply.message_id, MessageId::default());
    assert_eq!(reply.users[0].1, Ok(Seq::default()));
    assert_eq!(reply.users[2].1, Err(RequestError::UserNotFound));
    let items = gateway.take();
    let [Down::Deliver { targets, .. }] = &items[..] else { panic!("{items:?}") };
    assert_eq!((targets.len(), targets[0].seq), (1, Seq::default()));
    assert_eq!(dump(&*node.store), before);
}

#[test]
fn acks_rise_per_device_and_never_pass_the_newest_message() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let second = node.account(Some(bob.user), "c");
    for id in 1..=3 {
        node.send(alice, id, bob.user, "x").unwrap();
    }
    let ack = |of: Account, seq| Command::Ack { sender: bare(of), seq: Seq::new(seq) };
    assert_eq!(node.ask(ack(bob, 2)), Ok(Reply::Acked(Seq::new(2))));
    let commits = node.counters.commits.get();
    assert_eq!(node.ask(ack(bob, 1)), Ok(Reply::Acked(Seq::new(2))), "never back");
    assert_eq!(node.counters.commits.get(), commits);
    assert_eq!(node.ask(ack(bob, 99)), Ok(Reply::Acked(Seq::new(3))), "never beyond");
    assert_eq!(node.ask(ack(second, 1)), Ok(Reply::Acked(Seq::new(1))), "each device its own");
    let moved = Account { user: alice.user, ..bob };
    assert_eq!(node.ask(ack(moved, 1)), Err(RequestError::NotSignedIn));
}

#[test]
fn pages_are_bounded_in_count_and_bytes_but_give_one_message_at_least() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    for id in 1..=60 {
        node.send(alice, id, bob.user, &"x".repeat(100)).unwrap();
    }
    let page = |after, limit, bytes| node.store.page(bob.user, Seq::new(after), limit, bytes).unwrap();
    let default = page(0, 0, 1 << 20);
    assert_eq!((default.entries.len(), default.end, default.has_more), (50, Seq::new(50), true));
    assert_eq!(page(0, 10, 350).entries.len(), 3);
    assert_eq!(page(0, 10, 1).entries.len(), 1);
    let end = page(55, 100, 1 << 20);
    assert_eq!(
        (end.entries.len(), end.end, end.has_more, end.latest),
        (5, Seq::new(60), false, Seq::new(60))
    );
    let beyond = page(1000, 10, 100);
    assert_eq!((beyond.entries.len(), beyond.end, beyond.has_more), (0, Seq::new(60), false), "clamped");
    let nobody = node.store.page(UserId::new(1), Seq::default(), 1, 1);
    assert_eq!(nobody, Err(RequestError::UserNotFound));
    let empty = node.store.page(alice.user, Seq::default(), 1, 1).unwrap();
    assert_eq!((empty.end, empty.latest, empty.has_more), (Seq::default(), Seq::default(), false));
}

#[test]
fn an_unknown_form_on_disk_is_an_error_and_harms_nobody_else() {
    use gimbal_control::log::Record;
    use gimbal_control::store::key;
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let mut record = Record::default();
    let head = key::mailbox(bob.user, Seq::default());
    record.put(Table::Mailbox, &head, &[99, 1, 0]);
    node.store.apply(&[(Partition::of_user(bob.user), record)]).unwrap();
    let mut node = Node::over(std::sync::Arc::clone(&node.store));
    let replies = node.turn(vec![send(alice, 1, bob.user, "x"), send(alice, 2, alice.user, "y")]);
    assert_eq!(replies[0], Err(RequestError::Internal));
    assert!(replies[1].is_ok());
    assert_eq!(node.store.page(bob.user, Seq::default(), 1, 1), Err(RequestError::Internal));
    let reply = pushed(node.ask(push(&[bob.user, alice.user], "x", "")));
    assert_eq!(reply.users[0].1, Err(RequestError::Internal));
    assert_eq!(reply.users[1].1, Ok(Seq::new(2)));
}

/// Whose reads of mailboxes fail while it is told so.
struct Flaky {
    inner: MemoryStore,
    fails: AtomicBool,
}

impl View for Flaky {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if table == Table::Mailbox && self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Engine("a read error".into()));
        }
        self.inner.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.inner.scan(table, from, to, visit)
    }
}

impl Store for Flaky {
    fn snapshot(&self) -> Box<dyn View + '_> {
        self.inner.snapshot()
    }

    fn apply(&self, records: &[(Partition, Record)]) -> Result<(), StoreError> {
        self.inner.apply(records)
    }

    fn is_healthy(&self) -> bool {
        true
    }

    fn control_epoch(&self) -> u32 {
        1
    }

    fn wal_syncs(&self) -> u64 {
        0
    }
}

#[test]
fn a_read_error_refuses_a_push_and_is_never_remembered_as_an_answer() {
    let store = Arc::new(Flaky { inner: MemoryStore::new(), fails: AtomicBool::new(false) });
    let users: Vec<UserId> = {
        let mut node = Node::over(Arc::clone(&store) as Arc<dyn Store>);
        (0..3).map(|_| node.account(None, "a").user).collect()
    };
    // A new life, whose cache knows one of the mailboxes.
    let mut node = Node::over(Arc::clone(&store) as Arc<dyn Store>);
    node.ask(push(&users[..1], "first", "")).unwrap();
    store.fails.store(true, Ordering::SeqCst);
    assert_eq!(node.ask(push(&users, "x", "once")), Err(RequestError::Unavailable));
    assert_eq!(
        node.ask(Command::Push {
            users: users.clone(),
            command: 1,
            content: Bytes::new(),
            transient: true,
            idempotency: None,
        }),
        Err(RequestError::Unavailable)
    );
    store.fails.store(false, Ordering::SeqCst);
    let all = pushed(node.ask(push(&users, "x", "once")));
    assert!(all.users.iter().all(|(_, result)| result.is_ok()), "{all:?}");
    assert_eq!(node.messages(users[0], 0).1, 2, "the refused one left nothing");
}

#[test]
fn a_caller_without_a_session_is_believed_only_with_the_devices_current_token() {
    let mut node = Node::memory();
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let guess = Account { token: bob.token, ..alice };
    assert_eq!(node.send(guess, 1, bob.user, "x"), Err(RequestError::NotSignedIn));
    let ack = Command::Ack { sender: bare(guess), seq: Seq::new(1) };
    assert_eq!(node.ask(ack), Err(RequestError::NotSignedIn));
    node.send(alice, 1, bob.user, "x").unwrap();
    node.now_ms += TOKEN_LIFE_MS;
    assert_eq!(node.send(alice, 2, bob.user, "x"), Err(RequestError::NotSignedIn), "expired");
    assert_eq!(node.messages(bob.user, 0).1, 1);
}
