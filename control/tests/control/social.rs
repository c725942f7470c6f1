//! Profiles, friends and blocks: by hand, and any interleaving against a plain model, on both stores at once.

use std::collections::{BTreeMap, BTreeSet};

use gimbal_codec::{CloseReason, UserId};
use gimbal_control::command::social::{Actor, ProfileChange, Social};
use gimbal_control::command::{Command, Reply};
use gimbal_control::error::RequestError;
use gimbal_control::social::read;
use gimbal_control::store::Table;
use gimbal_control::store::value::Friendship;
use gimbal_rpc::link::Down;
use gimbal_rpc::v1::{AddFriendPush, AgreeAddFriendPush, RemoveFriendPush};
use proptest::prelude::*;
use prost::Message as _;

use crate::support::{Account, Node, bare, dump, key};

fn act(of: Account, act: Social, idempotency: &str) -> Command {
    let idempotency = key(idempotency).map(|key| key.of_user(of.user));
    Command::Social { by: Actor::Device(bare(of)), act: Box::new(act), idempotency }
}

fn add(friend: Account) -> Social {
    Social::AddFriend { friend: friend.user, remark: "remark".into(), description: "hello".into() }
}

fn agree(friend: Account) -> Social {
    Social::AgreeFriend { friend: friend.user, remark: String::new() }
}

fn named(name: &str) -> Social {
    Social::UpdateUser(ProfileChange { nickname: Some(name.into()), ..ProfileChange::default() })
}

impl Node {
    fn act(&mut self, of: Account, what: Social) -> Result<Reply, RequestError> {
        self.ask(act(of, what, ""))
    }

    fn known(&self, user: UserId, kind: Friendship) -> Vec<UserId> {
        let page = read::friends(&*self.store.snapshot(), user, kind, &[], 100).unwrap();
        page.items.into_iter().map(|(page, _)| page.user).collect()
    }

    /// Commands and contents of a mailbox.
    fn told(&self, user: UserId) -> Vec<(i32, Vec<u8>)> {
        let page = self.store.page(user, gimbal_codec::Seq::new(0), 1000, 1 << 20).unwrap();
        page.entries.iter().map(|(_, body)| (body.command, body.content.to_vec())).collect()
    }
}

#[test]
fn two_users_become_friends_and_part_and_each_hears_of_the_other() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    node.act(one, named("Ada")).unwrap();
    node.act(two, named("Bob")).unwrap();
    assert_eq!(node.act(one, add(two)), Ok(Reply::Friendship(Friendship::Asked)));
    assert_eq!(node.act(one, add(two)), Ok(Reply::Friendship(Friendship::Asked)), "asked is asked once");
    assert_eq!(node.act(one, agree(two)), Err(RequestError::FriendNotFound), "one does not agree to itself");
    assert_eq!(node.known(two.user, Friendship::WasAsked), [one.user]);
    assert_eq!(node.act(two, agree(one)), Ok(Reply::Done));
    assert_eq!(node.known(one.user, Friendship::Friends), [two.user]);
    assert_eq!(node.known(two.user, Friendship::Friends), [one.user]);
    assert_eq!(node.act(one, add(two)), Err(RequestError::AlreadyFriends));

    let set = Social::SetFriend { friend: two.user, remark: Some("Bobby".into()), extra: None };
    node.act(one, set).unwrap();
    let page = read::friends(&*node.store.snapshot(), one.user, Friendship::Friends, &[], 9).unwrap();
    assert_eq!(page.items[0].1.remark, "Bobby");
    assert_eq!(node.act(one, Social::RemoveFriend(two.user)), Ok(Reply::Done));
    assert_eq!(node.act(one, Social::RemoveFriend(two.user)), Err(RequestError::FriendNotFound));
    assert_eq!(node.known(two.user, Friendship::Friends), []);

    let asked = AddFriendPush {
        friend_id: one.user.get(),
        nickname: "Ada".into(),
        avatar_url: String::new(),
        description: "hello".into(),
    };
    let gone = RemoveFriendPush { friend_id: one.user.get() };
    assert_eq!(node.told(two.user), [(110, asked.encode_to_vec()), (112, gone.encode_to_vec())]);
    let agreed =
        AgreeAddFriendPush { friend_id: two.user.get(), nickname: "Bob".into(), avatar_url: String::new() };
    assert_eq!(node.told(one.user), [(111, agreed.encode_to_vec())]);
}

#[test]
fn two_who_ask_each_other_are_friends_and_a_refusal_is_not_told() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    node.act(one, add(two)).unwrap();
    assert_eq!(node.act(two, Social::DeclineFriend(one.user)), Ok(Reply::Done));
    assert_eq!(node.told(one.user), []);
    assert_eq!(node.known(one.user, Friendship::Asked), []);
    node.act(one, add(two)).unwrap();
    assert_eq!(node.act(two, add(one)), Ok(Reply::Friendship(Friendship::Friends)));
    assert_eq!(node.known(one.user, Friendship::Friends), [two.user]);
    let unknown = Account { user: UserId::new(77), ..two };
    assert_eq!(node.act(one, add(unknown)), Err(RequestError::UserNotFound));
    assert!(matches!(node.act(one, add(one)), Err(RequestError::BadRequest { field: "user_id", .. })));
    let stranger = Account { token: one.token, ..two };
    assert_eq!(node.act(stranger, add(one)), Err(RequestError::NotSignedIn));
}

#[test]
fn who_is_blocked_neither_writes_nor_asks_until_it_is_taken_back() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    node.send(two, 1, one.user, "before").unwrap();
    node.act(one, Social::Block(two.user)).unwrap();
    assert_eq!(node.send(two, 2, one.user, "blocked"), Err(RequestError::Blocked));
    assert_eq!(node.act(two, add(one)), Err(RequestError::Blocked));
    assert_eq!(node.act(one, add(two)), Err(RequestError::Blocked));
    assert!(node.send(two, 1, one.user, "before").is_ok(), "what was stored before is repeated");
    assert!(node.send(one, 1, two.user, "back").is_ok(), "the blocked user still gets messages");
    let blocked = read::blocked(&*node.store.snapshot(), one.user, &[], 9).unwrap();
    assert_eq!(blocked.items[0].user, two.user);
    node.act(one, Social::Unblock(two.user)).unwrap();
    assert!(node.send(two, 2, one.user, "open").is_ok());
    assert_eq!(node.messages(one.user, 0).1, 2);
}

#[test]
fn where_only_friends_may_write_strangers_are_refused_and_backends_are_not() {
    let mut node = Node::memory();
    node.engine.set_friends_only(true);
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    assert_eq!(node.send(one, 1, two.user, "hello"), Err(RequestError::FriendNotFound));
    node.act(one, add(two)).unwrap();
    assert_eq!(
        node.send(one, 1, two.user, "hello"),
        Err(RequestError::FriendNotFound),
        "asked is not agreed"
    );
    node.act(two, agree(one)).unwrap();
    assert!(node.send(one, 1, two.user, "hello").is_ok());
    assert!(node.send(one, 1, one.user, "a note").is_ok(), "and everybody may write to itself");
    node.act(two, Social::RemoveFriend(one.user)).unwrap();
    assert_eq!(node.send(one, 2, two.user, "again"), Err(RequestError::FriendNotFound));
    assert!(node.ask(crate::support::push(&[two.user], "news", "")).is_ok());
}

#[test]
fn a_repeat_by_the_same_key_does_nothing_twice_and_keys_are_a_users_own() {
    let mut node = Node::memory();
    let (one, two) = (node.account(None, "one"), node.account(None, "two"));
    assert_eq!(node.ask(act(one, add(two), "k")), Ok(Reply::Friendship(Friendship::Asked)));
    node.act(two, agree(one)).unwrap();
    node.act(two, Social::RemoveFriend(one.user)).unwrap();
    let before = dump(&*node.store);
    assert_eq!(node.ask(act(one, add(two), "k")), Ok(Reply::Friendship(Friendship::Asked)));
    assert_eq!(dump(&*node.store), before, "the first answer, and nothing is written");
    assert_eq!(node.ask(act(one, Social::Block(two.user), "k")), Err(RequestError::Conflict));
    assert_eq!(node.ask(act(two, Social::Block(one.user), "k")), Ok(Reply::Done));
}

#[test]
fn names_are_found_by_any_part_page_by_page_and_each_user_once() {
    let mut node = Node::memory();
    let names = ["Banana", "bandana", "Anna", "Zo\u{eb} Ba", "\u{738b}\u{5c0f}\u{660e}", "x"];
    let people: Vec<Account> = names.iter().map(|name| node.account(None, name)).collect();
    for (person, name) in people.iter().zip(names) {
        node.act(*person, named(name)).unwrap();
    }
    let find = |node: &Node, part: &str| {
        let (mut found, mut from) = (Vec::new(), Vec::new());
        loop {
            let page = read::search(&*node.store.snapshot(), part, &from, 1).unwrap();
            assert!(page.items.len() <= 1);
            found.extend(page.items.into_iter().map(|page| page.profile.nickname));
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        found.sort();
        found
    };
    assert_eq!(find(&node, "an"), ["Anna", "Banana", "bandana"]);
    assert_eq!(find(&node, "ANA"), ["Banana", "bandana"]);
    assert_eq!(find(&node, "ba"), ["Banana", "Zo\u{eb} Ba", "bandana"]);
    assert_eq!(find(&node, "\u{eb} b"), ["Zo\u{eb} Ba"]);
    assert_eq!(find(&node, "\u{5c0f}\u{660e}"), ["\u{738b}\u{5c0f}\u{660e}"]);
    assert_eq!(find(&node, "nothing"), Vec::<String>::new());
    node.act(people[0], named("Cherry")).unwrap();
    assert_eq!(find(&node, "an"), ["Anna", "bandana"]);
    assert_eq!(find(&node, "cherry"), ["Cherry"]);
    node.act(people[0], named("")).unwrap();
    assert_eq!(find(&node, "cherry"), Vec::<String>::new());
    let view = node.store.snapshot();
    assert!(read::search(&*view, "a", &[], 9).is_err(), "one letter is too little");
    assert!(read::search(&*view, "an", b"foreign", 9).is_err());
    assert!(read::search(&*view, "a\0", &[], 9).is_err());
}

#[test]
fn a_profile_keeps_what_a_change_does_not_name_and_refuses_what_is_too_long() {
    let mut node = Node::memory();
    let one = node.account(None, "one");
    let first = ProfileChange {
        nickname: Some("Ada".into()),
        sex: Some(2),
        avatar_url: Some("https://example.org/a".into()),
        extra: Some("{}".into()),
    };
    node.act(one, Social::UpdateUser(first)).unwrap();
    node.now_ms += 5;
    let only = ProfileChange { extra: Some("e".into()), ..ProfileChange::default() };
    node.act(one, Social::UpdateUser(only)).unwrap();
    let profile = read::user(&*node.store.snapshot(), one.user).unwrap().unwrap().profile;
    assert_eq!((profile.nickname.as_str(), profile.sex, profile.extra.as_str()), ("Ada", 2, "e"));
    assert_eq!(profile.updated_at_ms, node.now_ms);
    for (name, field) in [("n".repeat(129), "nickname"), ("a\0b".into(), "nickname")] {
        let refused = node.act(one, named(&name));
        assert!(matches!(refused, Err(RequestError::BadRequest { field: of, .. }) if of == field));
    }
}

#[test]
fn a_removed_device_is_closed_and_gone() {
    let mut node = Node::memory();
    let (lane, gateway) = node.gateway(1);
    let one = node.account(None, "one");
    let other = node.account(Some(one.user), "other");
    node.attach(lane, 1, other);
    gateway.take();
    let devices = read::devices(&*node.store.snapshot(), one.user).unwrap();
    assert_eq!(devices.iter().map(|page| page.device).collect::<Vec<_>>(), [one.device, other.device]);
    node.act(one, Social::RemoveDevice(other.device)).unwrap();
    assert!(matches!(gateway.take()[..], [Down::Kick { reason: CloseReason::TokenRevoked, .. }]));
    assert_eq!(read::devices(&*node.store.snapshot(), one.user).unwrap().len(), 1);
    assert_eq!(node.send(other, 1, one.user, "late"), Err(RequestError::NotSignedIn));
    let again = node.act(one, Social::RemoveDevice(other.device));
    assert_eq!(again, Err(RequestError::DeviceNotFound));
}

const USERS: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Step {
    Add,
    Agree,
    Decline,
    Remove,
    Block,
    Unblock,
    Send,
}

fn steps() -> impl Strategy<Value = Vec<Vec<(Step, usize, usize)>>> {
    let step = prop_oneof![
        4 => Just(Step::Add),
        3 => Just(Step::Agree),
        1 => Just(Step::Decline),
        2 => Just(Step::Remove),
        1 => Just(Step::Block),
        1 => Just(Step::Unblock),
        1 => Just(Step::Send),
    ];
    let step = (step, 0..USERS, 0..USERS).prop_filter("two users", |(_, one, two)| one != two);
    proptest::collection::vec(proptest::collection::vec(step, 1..24), 1..8)
}

/// Who asked whom, who are friends (both ways), who blocks whom, and how many messages each has.
#[derive(Default)]
struct Model {
    asked: BTreeSet<(usize, usize)>,
    friends: BTreeSet<(usize, usize)>,
    blocks: BTreeSet<(usize, usize)>,
    told: BTreeMap<usize, Vec<i32>>,
}

impl Model {
    fn tell(&mut self, user: usize, command: i32) {
        self.told.entry(user).or_default().push(command);
    }

    fn befriend(&mut self, one: usize, two: usize) {
        self.asked.remove(&(two, one));
        self.friends.extend([(one, two), (two, one)]);
        self.tell(two, 111);
    }

    fn step(&mut self, step: Step, one: usize, two: usize) -> Result<Reply, RequestError> {
        let (asked, was_asked) = (self.asked.contains(&(one, two)), self.asked.contains(&(two, one)));
        let friends = self.friends.contains(&(one, two));
        let blocked = self.blocks.contains(&(one, two)) || self.blocks.contains(&(two, one));
        match step {
            Step::Add if blocked => Err(RequestError::Blocked),
            Step::Add if friends => Err(RequestError::AlreadyFriends),
            Step::Add if was_asked => {
                self.befriend(one, two);
                Ok(Reply::Friendship(Friendship::Friends))
            }
            Step::Add => {
                if self.asked.insert((one, two)) {
                    self.tell(two, 110);
                }
                Ok(Reply::Friendship(Friendship::Asked))
            }
            Step::Agree if friends => Ok(Reply::Done),
            Step::Agree if was_asked => {
                self.befriend(one, two);
                Ok(Reply::Done)
            }
            Step::Decline if was_asked => {
                self.asked.remove(&(two, one));
                Ok(Reply::Done)
            }
            Step::Remove if friends => {
                self.friends.retain(|pair| *pair != (one, two) && *pair != (two, one));
                self.tell(two, 112);
                Ok(Reply::Done)
            }
            Step::Remove if asked => {
                self.asked.remove(&(one, two));
                Ok(Reply::Done)
            }
            Step::Agree | Step::Decline | Step::Remove => Err(RequestError::FriendNotFound),
            Step::Block => {
                self.blocks.insert((one, two));
                Ok(Reply::Done)
            }
            Step::Unblock => {
                self.blocks.remove(&(one, two));
                Ok(Reply::Done)
            }
            Step::Send if self.blocks.contains(&(two, one)) => Err(RequestError::Blocked),
            Step::Send => {
                self.tell(two, 7);
                Ok(Reply::Done)
            }
        }
    }

    fn check(&self, node: &Node, people: &[Account]) {
        let of = |set: &BTreeSet<(usize, usize)>, one: usize| -> Vec<UserId> {
            set.iter().filter(|pair| pair.0 == one).map(|pair| people[pair.1].user).collect()
        };
        let turned = self.asked.iter().map(|(one, two)| (*two, *one)).collect();
        for (one, person) in people.iter().enumerate() {
            assert_eq!(node.known(person.user, Friendship::Friends), of(&self.friends, one));
            assert_eq!(node.known(person.user, Friendship::Asked), of(&self.asked, one));
            assert_eq!(node.known(person.user, Friendship::WasAsked), of(&turned, one));
            let blocked = read::blocked(&*node.store.snapshot(), person.user, &[], 100).unwrap();
            let blocked: Vec<UserId> = blocked.items.iter().map(|page| page.user).collect();
            assert_eq!(blocked, of(&self.blocks, one));
            let told: Vec<i32> = node.told(person.user).iter().map(|(command, _)| *command).collect();
            assert_eq!(told, self.told.get(&one).cloned().unwrap_or_default());
        }
    }
}

fn command(people: &[Account], id: u64, step: Step, one: usize, two: usize) -> Command {
    let (of, other) = (people[one], people[two]);
    let what = match step {
        Step::Add => add(other),
        Step::Agree => agree(other),
        Step::Decline => Social::DeclineFriend(other.user),
        Step::Remove => Social::RemoveFriend(other.user),
        Step::Block => Social::Block(other.user),
        Step::Unblock => Social::Unblock(other.user),
        Step::Send => return crate::support::send(of, id, other.user, "text"),
    };
    act(of, what, "")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_acts_of_many_users_leave_what_a_plain_model_holds(batches in steps(), restart in 0..8_usize) {
        let dir = tempfile::tempdir().unwrap();
        let (mut memory, mut rocks) = (Node::memory(), Node::rocks(dir.path()));
        let people: Vec<Account> = (0..USERS).map(|at| memory.account(None, &at.to_string())).collect();
        for at in 0..USERS {
            rocks.account(None, &at.to_string());
        }
        let (mut model, mut id) = (Model::default(), 0);
        for (at, batch) in batches.iter().enumerate() {
            if at == restart {
                drop(rocks);
                rocks = Node::rocks(dir.path());
                rocks.now_ms = memory.now_ms;
            }
            let mut commands = Vec::new();
            for (step, one, two) in batch {
                id += 1;
                commands.push((id, *step, *one, *two));
            }
            let make = || commands.iter().map(|(id, step, one, two)| command(&people, *id, *step, *one, *two));
            let (got, same) = (memory.turn(make().collect()), rocks.turn(make().collect()));
            for ((_, step, one, two), (got, same)) in commands.iter().zip(got.into_iter().zip(same)) {
                let sent = |reply: Result<Reply, RequestError>| reply.map(|reply| match reply {
                    Reply::Sent(_) => Reply::Done,
                    reply => reply,
                });
                let (got, same) = (sent(got), sent(same));
                prop_assert_eq!(&got, &same);
                prop_assert_eq!(got, model.step(*step, *one, *two), "{:?} {} {}", step, one, two);
            }
        }
        model.check(&memory, &people);
        model.check(&rocks, &people);
        let of = |node: &Node| dump(&*node.store).into_iter().filter(|entry| entry.0 == Table::Social).collect::<Vec<_>>();
        prop_assert_eq!(of(&memory), of(&rocks));
    }
}
