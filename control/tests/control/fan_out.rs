//! Messages to groups that are too large for one commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gimbal_codec::{GroupId, Seq, UserId};
use gimbal_control::command::group::GroupAct;
use gimbal_control::command::social::Actor;
use gimbal_control::command::{Command, DeviceInfo, Reply, ReplyTo};
use gimbal_control::error::RequestError;
use gimbal_control::group::{NOW_MAX, open as on_their_way, read};
use gimbal_control::log::EmbeddedLog;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::store::{Store, Table};
use gimbal_control::writer::{Job, Limits, Writer};
use gimbal_rpc::v1;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::groups::{give_out, group_act, group_send, made};
use crate::sim::faults::{Crash, CrashingLog, Plan};
use crate::sim::rng::Rng;
use crate::support::{Account, Node, START_MS, dump, new_token, registered, send};

const BACKEND: Actor = Actor::Backend(UserId::new(0));
/// Command of the tests' own messages.
const SAID: i32 = 7;

/// Users with a device each, made in one commit.
fn crowd(node: &mut Node, count: usize) -> Vec<Account> {
    let token = new_token("crowd", node.now_ms);
    let one =
        || Command::RegisterDevice { user: None, device: DeviceInfo::default(), token, idempotency: None };
    let replies = node.turn((0..count).map(|_| one()).collect());
    let account = |reply| {
        let made = registered(reply);
        Account { user: made.user, device: made.device, token: token.hash }
    };
    replies.into_iter().map(account).collect()
}

/// A group of all of them; what its members were told so far has reached them.
fn group_of(node: &mut Node, all: &[Account]) -> GroupId {
    let group = made(node, all[0].user, &[]);
    for some in all[1..].chunks(NOW_MAX) {
        let users = some.iter().map(|account| account.user).collect();
        node.ask(group_act(BACKEND, group, GroupAct::AddMembers(users), "")).unwrap();
    }
    give_out(node);
    group
}

/// Place in the group's order, command and content of a mailbox's messages.
fn got(store: &dyn Store, user: UserId) -> Vec<(u64, i32, Bytes)> {
    let (mut all, mut after) = (Vec::new(), Seq::new(0));
    loop {
        let page = store.page(user, after, 500, 1 << 30).unwrap();
        let body = |(_, body): &(Seq, Arc<gimbal_rpc::link::Body>)| {
            (body.group_seq.get(), body.command, body.content.clone())
        };
        all.extend(page.entries.iter().map(body));
        if !page.has_more {
            return all;
        }
        after = page.end;
    }
}

fn said(store: &dyn Store, user: UserId) -> Vec<String> {
    let all = got(store, user).into_iter().filter(|(_, command, _)| *command == SAID);
    all.map(|(_, _, text)| String::from_utf8(text.to_vec()).unwrap()).collect()
}

fn one_fan_out(node: &mut Node) {
    let job = node.engine.next_fan_out().expect("a message is on its way");
    node.run(&mut vec![job]);
}

/// How many of them have it.
fn have(node: &Node, all: &[Account], text: &str) -> usize {
    all.iter().filter(|account| said(&*node.store, account.user).iter().any(|got| got == text)).count()
}

#[test]
fn it_is_acknowledged_in_one_commit_and_given_out_in_batches_between_other_commands() {
    let dir = tempfile::tempdir().unwrap();
    for mut node in [Node::memory(), Node::rocks(dir.path())] {
        let all = crowd(&mut node, 1300);
        let group = group_of(&mut node, &all);
        let commits = node.counters.commits.get();
        node.ask(group_send(all[3], 1, group, "one")).unwrap();
        assert_eq!((node.counters.commits.get() - commits, have(&node, &all, "one")), (1, 0));
        let (mut given, mut id) = (Vec::new(), 0);
        while let Some(fan_out) = node.engine.next_fan_out() {
            let sends = node.counters.sends.get();
            id += 1;
            let mut jobs = vec![fan_out];
            let (answer, mut wait) = oneshot::channel();
            let reply_to = ReplyTo::Call(answer);
            let command = send(all[0], id, all[1].user, "beside");
            jobs.push(Job { command, reply_to });
            let commits = node.counters.commits.get();
            node.run(&mut jobs);
            assert_eq!(node.counters.commits.get() - commits, 1, "both are one commit");
            assert!(matches!(wait.try_recv(), Ok(Ok(Reply::Sent(_)))));
            given.push(node.counters.sends.get() - sends - 1);
        }
        assert_eq!(given, [512, 512, 276]);
        assert_eq!(have(&node, &all, "one"), 1300);
        assert!(on_their_way(&*node.store).unwrap().is_empty());
    }
}

#[test]
fn messages_wait_for_those_before_them_and_all_members_see_one_order() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 600);
    let group = group_of(&mut node, &all);
    let mut texts = Vec::new();
    for id in 1..=5 {
        let text = format!("message {id}");
        node.ask(group_send(all[id as usize], id, group, &text)).unwrap();
        texts.push(text);
        one_fan_out(&mut node);
    }
    // Few enough now, but others are under way.
    let gone: Vec<UserId> = all[100..300].iter().map(|account| account.user).collect();
    node.ask(group_act(BACKEND, group, GroupAct::RemoveMembers(gone), "")).unwrap();
    node.ask(group_send(all[1], 6, group, "last")).unwrap();
    texts.push("last".into());
    assert_eq!(have(&node, &all, "last"), 0);
    give_out(&mut node);
    for account in all[..100].iter().chain(&all[300..]) {
        assert_eq!(said(&*node.store, account.user), texts);
    }
    node.ask(group_send(all[1], 7, group, "at once")).unwrap();
    assert_eq!((have(&node, &all, "at once"), node.engine.has_fan_out()), (400, false));
}

#[test]
fn a_restart_half_way_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::rocks(dir.path());
    let all = crowd(&mut node, 1100);
    let group = group_of(&mut node, &all);
    node.ask(group_send(all[0], 1, group, "one")).unwrap();
    node.ask(group_send(all[1], 1, group, "two")).unwrap();
    one_fan_out(&mut node);
    for _ in 0..5 {
        drop(node);
        node = Node::rocks(dir.path());
        assert_eq!(on_their_way(&*node.store).unwrap(), [group]);
        one_fan_out(&mut node);
    }
    assert!(!node.engine.has_fan_out());
    for account in &all {
        assert_eq!(said(&*node.store, account.user), ["one", "two"]);
    }
    drop(node);
    assert!(!Node::rocks(dir.path()).engine.has_fan_out());
}

#[test]
fn it_is_for_those_who_were_members_then_and_still_are() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 602);
    let (group, late) = (group_of(&mut node, &all[..600]), &all[600..]);
    node.ask(group_send(all[0], 1, group, "one")).unwrap();
    let add = |user: Account| group_act(BACKEND, group, GroupAct::AddMembers(vec![user.user]), "");
    let remove = |user: Account| group_act(BACKEND, group, GroupAct::RemoveMembers(vec![user.user]), "");
    let (leaver, returner) = (all[590], all[591]);
    // In one batch with the message's first part, so that neither sees the other on disk.
    let fan_out = node.engine.next_fan_out().unwrap().command;
    let changes = vec![add(late[0]), remove(leaver), remove(returner), add(returner), fan_out];
    assert!(node.turn(changes).iter().all(Result::is_ok));
    node.ask(group_send(all[0], 2, group, "two")).unwrap();
    give_out(&mut node);
    assert_eq!(said(&*node.store, all[589].user), ["one", "two"]);
    assert_eq!(said(&*node.store, late[0].user), ["two"], "who joined later does not get it");
    assert_eq!(said(&*node.store, returner.user), ["two"], "who came back joined later");
    assert_eq!(said(&*node.store, leaver.user), Vec::<String>::new(), "who was removed does not get it");
    let last = got(&*node.store, leaver.user).pop().unwrap();
    assert_eq!(last.1, 122, "but is told of that");
    let told = v1::RemoveGroupMembersPush::decode(last.2).unwrap();
    assert_eq!(told.user_ids, [leaver.user.get()]);
}

#[test]
fn a_large_group_is_dissolved_behind_its_last_messages() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 700);
    let group = group_of(&mut node, &all);
    node.ask(group_send(all[0], 1, group, "one")).unwrap();
    node.ask(group_act(BACKEND, group, GroupAct::Dissolve, "")).unwrap();
    assert_eq!(node.ask(group_send(all[0], 2, group, "two")), Err(RequestError::GroupNotFound));
    let groups_of =
        |node: &Node, user| read::groups(&*node.store.snapshot(), user, &[], 10).map(|page| page.items.len());
    assert_eq!(groups_of(&node, all[699].user), Ok(0), "it is nobody's at once");
    give_out(&mut node);
    for account in &all {
        assert_eq!(said(&*node.store, account.user), ["one"]);
        assert_eq!(got(&*node.store, account.user).last().unwrap().1, 123);
    }
    let left =
        dump(&*node.store).into_iter().filter(|(_, key, _)| key.len() == 19 && [4, 8].contains(&key[2]));
    let left = left.filter(|(table, ..)| *table == Table::Social).count();
    assert_eq!(left, 0, "nobody is a member any more");
    let again = members_of(&mut node, all[0].user);
    assert_eq!(again, 1, "and may be in as many groups as before");
}

fn members_of(node: &mut Node, owner: UserId) -> u64 {
    let group = made(node, owner, &[]);
    read::group(&*node.store.snapshot(), group, owner).unwrap().head.members
}

#[test]
fn groups_take_turns_and_a_commit_stays_bounded() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 1100);
    let groups = [group_of(&mut node, &all), group_of(&mut node, &all), group_of(&mut node, &all[..400])];
    node.ask(group_send(all[0], 1, groups[0], "one")).unwrap();
    node.ask(group_send(all[0], 2, groups[1], "one")).unwrap();
    let next = |node: &mut Node| {
        let job = node.engine.next_fan_out().unwrap();
        let Command::FanOut { group } = job.command else { panic!("no fan-out") };
        node.run(&mut vec![job]);
        group
    };
    let order: Vec<GroupId> = (0..4).map(|_| next(&mut node)).collect();
    assert_eq!(order, [groups[0], groups[1], groups[0], groups[1]]);
    give_out(&mut node);
    let commits = node.counters.commits.get();
    let sends = (10..20).map(|id| group_send(all[0], id, groups[2], &format!("{id}"))).collect();
    assert!(node.turn(sends).iter().all(Result::is_ok));
    assert_eq!(node.counters.commits.get() - commits, 4, "three messages of 400 mailboxes fill a commit");
}

#[test]
fn the_writer_goes_on_by_itself_and_answers_others_meanwhile() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 1500);
    let group = group_of(&mut node, &all);
    node.ask(group_send(all[0], 1, group, "before")).unwrap();
    // The fan-out of before is found at the start.
    let store: Arc<dyn Store> = Arc::new(MemoryStore::from_dump(dump(&*node.store), 2));
    let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
    let clock = Box::new(|| START_MS);
    let writer = Writer::start(Arc::clone(&store), log, Limits::default(), clock).unwrap();
    for id in 2..10 {
        writer.call_blocking(group_send(all[0], id, group, &format!("{id}"))).unwrap();
        writer.call_blocking(send(all[1], id, all[2].user, "beside")).unwrap();
    }
    // Five minutes; only a failure waits for it.
    for waits in 0.. {
        if on_their_way(&*store).unwrap().is_empty() {
            break;
        }
        assert!(waits < 60_000, "it never ends");
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.stop();
    let texts: Vec<String> =
        std::iter::once("before".into()).chain((2..10).map(|id| id.to_string())).collect();
    for account in &all[3..] {
        assert_eq!(said(&*store, account.user), texts);
    }
}

#[test]
fn a_writer_that_stops_leaves_the_rest_for_its_next_life() {
    let mut node = Node::memory();
    let all = crowd(&mut node, 3000);
    let group = group_of(&mut node, &all);
    let log = Box::new(EmbeddedLog::new(Arc::clone(&node.store)));
    let writer =
        Writer::start(Arc::clone(&node.store), log, Limits::default(), Box::new(|| START_MS)).unwrap();
    for id in 1..=10 {
        writer.call_blocking(group_send(all[0], id, group, &format!("{id}"))).unwrap();
    }
    writer.stop();
    let mut next = Node::over(Arc::new(MemoryStore::from_dump(dump(&*node.store), 2)));
    give_out(&mut next);
    for account in &all {
        assert_eq!(said(&*next.store, account.user), (1..=10).map(|id| id.to_string()).collect::<Vec<_>>());
    }
}

/// Members who never leave, and some who come and go.
const STAYING: usize = 530;
const GUESTS: usize = 8;
const STEPS: u32 = 80;

/// A world of one group whose control dies around commits, also between the batches of a message.
struct Hall {
    node: Node,
    plan: Plan,
    rng: Rng,
    epoch: u32,
    group: GroupId,
    staying: Vec<Account>,
    guests: Vec<Account>,
    /// Of each speaker (one of the first who stay): what is not answered yet, under which id.
    wanted: BTreeMap<usize, (u64, String)>,
    next_id: u64,
    acknowledged: BTreeMap<String, u64>,
}

impl Hall {
    fn new(seed: u64) -> Self {
        let (mut node, plan) = node_over(Arc::new(MemoryStore::new()));
        let mut staying = crowd(&mut node, STAYING + GUESTS);
        let group = group_of(&mut node, &staying[..STAYING]);
        let guests = staying.split_off(STAYING);
        let (wanted, acknowledged) = (BTreeMap::new(), BTreeMap::new());
        let rng = Rng::new(seed);
        Self { node, plan, rng, epoch: 1, group, staying, guests, wanted, next_id: 1, acknowledged }
    }

    fn step(&mut self) {
        let (mut commands, mut speakers) = (Vec::new(), Vec::new());
        for _ in 0..=self.rng.below(3) {
            if self.rng.chance(40) {
                let guest = self.guests[self.rng.below(GUESTS as u64) as usize].user;
                let act = match self.rng.below(2) {
                    0 => GroupAct::AddMembers(vec![guest]),
                    _ => GroupAct::RemoveMembers(vec![guest]),
                };
                commands.push(group_act(BACKEND, self.group, act, ""));
            } else {
                let speaker = self.rng.below(4) as usize;
                let (id, text) = self.want(speaker);
                speakers.push((commands.len(), speaker));
                commands.push(group_send(self.staying[speaker], id, self.group, &text));
            }
        }
        if self.rng.chance(70) {
            commands.extend(self.node.engine.next_fan_out().map(|job| job.command));
        }
        let crash = match self.rng.below(8) {
            0 => Some(Crash::BeforeCommit),
            1 => Some(Crash::AfterCommit),
            _ => None,
        };
        *self.plan.lock().unwrap() = crash;
        let replies = self.node.turn(commands);
        if crash.is_some() {
            return self.restart();
        }
        for (at, speaker) in speakers {
            self.heard(speaker, &replies[at]);
        }
    }

    fn want(&mut self, speaker: usize) -> (u64, String) {
        let next_id = &mut self.next_id;
        let wanted = self.wanted.entry(speaker).or_insert_with(|| {
            *next_id += 1;
            (*next_id, format!("{speaker}:{next_id}"))
        });
        wanted.clone()
    }

    fn heard(&mut self, speaker: usize, reply: &Result<Reply, RequestError>) {
        let Ok(Reply::Sent(sent)) = reply else {
            panic!("a send without a crash is answered, not {reply:?}")
        };
        // The same message may have been sent twice in one batch.
        if let Some((_, text)) = self.wanted.remove(&speaker) {
            assert_eq!(self.acknowledged.insert(text, sent.seq.get()), None);
        }
    }

    fn restart(&mut self) {
        self.epoch += 1;
        let store = Arc::new(MemoryStore::from_dump(dump(&*self.node.store), self.epoch));
        (self.node, self.plan) = node_over(store);
    }

    /// Every message under way gets its answer, and reaches everybody.
    fn settle(&mut self) {
        *self.plan.lock().unwrap() = None;
        for (speaker, (id, text)) in self.wanted.clone() {
            let reply = self.node.ask(group_send(self.staying[speaker], id, self.group, &text));
            self.heard(speaker, &reply);
        }
        give_out(&mut self.node);
    }

    fn check(&self) {
        let log = got(&*self.node.store, self.staying[0].user);
        let log: Vec<_> = log.into_iter().filter(|(seq, ..)| *seq > 0).collect();
        assert!(log.iter().zip(1..).all(|((seq, ..), at)| *seq == at), "every place of the order is taken");
        for account in &self.staying[1..] {
            let own = got(&*self.node.store, account.user);
            assert!(log.ends_with(&own), "everybody has all since joining, once and in that order");
        }
        let texts: BTreeMap<String, u64> = log
            .iter()
            .filter(|(_, command, _)| *command == SAID)
            .map(|(seq, _, text)| (String::from_utf8(text.to_vec()).unwrap(), *seq))
            .collect();
        assert_eq!(
            texts, self.acknowledged,
            "what was acknowledged is there, at its place, and nothing else"
        );
        for guest in &self.guests {
            self.check_guest(guest.user, &log);
        }
    }

    /// The notices say from when to when a guest was a member.
    fn check_guest(&self, guest: UserId, log: &[(u64, i32, Bytes)]) {
        let own = got(&*self.node.store, guest);
        assert!(own.windows(2).all(|pair| pair[0].0 < pair[1].0), "nothing twice, and in order");
        let (mut is_member, mut may, mut must) = (false, BTreeSet::new(), BTreeSet::new());
        for (seq, command, content) in log {
            let (mut joins, mut goes) = (false, false);
            match command {
                121 => joins = added(content).contains(&guest.get()),
                122 => goes = removed(content).contains(&guest.get()),
                _ => {}
            }
            if joins {
                must.clear();
            }
            is_member |= joins;
            if is_member {
                may.insert(*seq);
                must.insert(*seq);
            }
            if goes {
                is_member = false;
                must = BTreeSet::from([*seq]);
            }
        }
        let own: BTreeSet<u64> = own.into_iter().map(|(seq, ..)| seq).collect();
        assert!(own.is_subset(&may), "only what was sent while a member: {own:?} of {may:?}");
        assert!(must.is_subset(&own), "all since the last joining, or the last going: {must:?} in {own:?}");
    }
}

fn added(content: &Bytes) -> Vec<u64> {
    v1::AddGroupMembersPush::decode(content.clone()).unwrap().user_ids
}

fn removed(content: &Bytes) -> Vec<u64> {
    v1::RemoveGroupMembersPush::decode(content.clone()).unwrap().user_ids
}

fn node_over(store: Arc<dyn Store>) -> (Node, Plan) {
    let plan: Plan = Arc::new(Mutex::new(None));
    let inner = EmbeddedLog::new(Arc::clone(&store));
    let log = CrashingLog { inner, plan: Arc::clone(&plan) };
    (Node::with_log(store, Box::new(log)), plan)
}

#[test]
fn each_member_gets_each_message_once_and_in_one_order_whenever_control_dies() {
    for seed in 1..=10 {
        let result = std::panic::catch_unwind(|| {
            let mut hall = Hall::new(seed);
            (0..STEPS).for_each(|_| hall.step());
            hall.settle();
            hall.check();
            assert!(hall.epoch > 3 && hall.acknowledged.len() > 20, "much has happened");
        });
        result.unwrap_or_else(|_| panic!("seed {seed} breaks a promise"));
    }
}
