//! Groups: who may do what, what members are told, and messages to them.

use bytes::Bytes;
use gimbal_codec::{ClientMessageId, GroupId, Seq, UserId};
use gimbal_control::command::group::{GROUPS_MAX, GroupAct, GroupChange, MEMBERS_PER_CALL_MAX};
use gimbal_control::command::social::{Actor, Social};
use gimbal_control::command::{Command, Proof, Reply, Sender};
use gimbal_control::error::RequestError;
use gimbal_control::group::read;
use gimbal_control::store::Table;
use gimbal_control::store::value::{Role, Verdict};
use gimbal_rpc::link::{Down, Recipient, SendResult};
use gimbal_rpc::v1;

use crate::support::{Account, Node, attach, bare, dump, key};

const BACKEND: Actor = Actor::Backend(UserId::new(0));

pub(crate) fn group_act(by: Actor, group: GroupId, act: GroupAct, idempotency: &str) -> Command {
    Command::Group { by, group, act: Box::new(act), idempotency: key(idempotency) }
}

pub(crate) fn create(owner: UserId, users: &[UserId]) -> GroupAct {
    let shows = GroupChange { name: Some("band".into()), ..GroupChange::default() };
    GroupAct::Create { shows, owner, users: users.to_vec() }
}

pub(crate) fn group_send(from: Account, id: u64, group: GroupId, text: &str) -> Command {
    Command::Send {
        sender: bare(from),
        client_message_id: ClientMessageId::new(id),
        to: Recipient::Group(group),
        command: 7,
        content: Bytes::copy_from_slice(text.as_bytes()),
    }
}

/// Executes what is on its way to groups to its end; how many batches that took.
pub(crate) fn give_out(node: &mut Node) -> usize {
    let mut batches = 0;
    while let Some(job) = node.engine.next_fan_out() {
        node.run(&mut vec![job]);
        batches += 1;
    }
    batches
}

fn done(node: &mut Node, by: Actor, group: GroupId, act: GroupAct) -> Result<(), RequestError> {
    match node.ask(group_act(by, group, act, ""))? {
        Reply::Done => Ok(()),
        reply => panic!("not {reply:?}"),
    }
}

fn members(reply: Result<Reply, RequestError>) -> Result<(GroupId, Vec<Verdict>), RequestError> {
    match reply? {
        Reply::Members { group, members } => Ok((group, members.into_iter().map(|(_, how)| how).collect())),
        reply => panic!("not {reply:?}"),
    }
}

pub(crate) fn made(node: &mut Node, owner: UserId, users: &[UserId]) -> GroupId {
    members(node.ask(group_act(BACKEND, GroupId::default(), create(owner, users), ""))).unwrap().0
}

fn say(node: &mut Node, from: Account, id: u64, group: GroupId, text: &str) -> Result<Seq, RequestError> {
    sent(node.ask(group_send(from, id, group, text))).map(|sent| sent.seq)
}

fn sent(reply: Result<Reply, RequestError>) -> Result<SendResult, RequestError> {
    match reply? {
        Reply::Sent(sent) => Ok(sent),
        reply => panic!("not {reply:?}"),
    }
}

fn device(account: Account) -> Actor {
    Actor::Device(bare(account))
}

/// Place in the group's order, command and text of all messages in a mailbox.
fn got(node: &Node, user: UserId) -> Vec<(u64, i32, Bytes)> {
    let page = node.store.page(user, Seq::new(0), 500, 1 << 30).unwrap();
    let messages = page.entries.iter();
    messages.map(|(_, body)| (body.group_seq.get(), body.command, body.content.clone())).collect()
}

fn texts(node: &Node, user: UserId) -> Vec<(u64, String)> {
    let all = got(node, user).into_iter().filter(|(_, command, _)| *command == 7);
    all.map(|(seq, _, text)| (seq, String::from_utf8(text.to_vec()).unwrap())).collect()
}

fn last<T: prost::Message + Default>(node: &Node, user: UserId) -> (i32, T) {
    let (_, command, content) = got(node, user).pop().unwrap();
    (command, T::decode(content).unwrap())
}

fn role_of(node: &Node, group: GroupId, user: UserId) -> Option<Role> {
    let page = read::group(&*node.store.snapshot(), group, user).ok()?;
    page.me.map(|(_, member)| member.role)
}

/// An owner, an admin, two members and a stranger.
struct Band {
    group: GroupId,
    owner: Account,
    admin: Account,
    singer: Account,
    drummer: Account,
    stranger: Account,
}

fn band(node: &mut Node) -> Band {
    let [owner, admin, singer, drummer, stranger] = ["o", "a", "s", "d", "x"].map(|t| node.account(None, t));
    let users = [admin.user, singer.user, drummer.user];
    let act = group_act(device(owner), GroupId::default(), create(UserId::default(), &users), "");
    let (group, how) = members(node.ask(act)).unwrap();
    assert_eq!(how, [Verdict::Done; 3]);
    let set = GroupAct::SetRole { user: admin.user, role: Role::Admin };
    done(node, device(owner), group, set).unwrap();
    Band { group, owner, admin, singer, drummer, stranger }
}

#[test]
fn a_message_is_stored_once_and_is_in_each_mailbox_once_in_one_order() {
    let dir = tempfile::tempdir().unwrap();
    for mut node in [Node::memory(), Node::rocks(dir.path())] {
        let Band { group, owner, admin, singer, drummer, stranger } = band(&mut node);
        let before = node.counters.commits.get();
        assert_eq!(say(&mut node, singer, 1, group, "la").unwrap(), Seq::new(3), "after two notices");
        assert_eq!(node.counters.commits.get(), before + 1, "all of it is one commit");
        let one_batch = vec![group_send(drummer, 1, group, "bum"), group_send(owner, 1, group, "ok")];
        assert!(node.turn(one_batch).iter().all(Result::is_ok));
        let all = vec![(3, "la".to_owned()), (4, "bum".to_owned()), (5, "ok".to_owned())];
        for member in [owner, admin, singer, drummer] {
            assert_eq!(texts(&node, member.user), all);
            assert_eq!(node.messages(member.user, 0).1, 5);
        }
        assert_eq!(texts(&node, stranger.user), []);
        let bodies = dump(&*node.store).into_iter().filter(|(table, ..)| *table == Table::Message).count();
        assert_eq!(bodies, 5, "two notices and three messages, each once");
        let page = node.store.page(admin.user, Seq::new(2), 1, 1 << 20).unwrap();
        let body = &page.entries[0].1;
        assert_eq!((body.group, body.group_seq, body.from_user), (group, Seq::new(3), singer.user));
        assert_eq!((body.from_device, body.created_at_ms), (singer.device, node.now_ms));
    }
}

#[test]
fn online_members_are_given_it_at_once() {
    let mut node = Node::memory();
    let Band { group, admin, singer, stranger, .. } = band(&mut node);
    let (lane, gateway) = node.gateway(1);
    for (at, account) in [admin, singer, stranger].into_iter().enumerate() {
        node.ask(attach(lane, at as u32, account)).unwrap();
    }
    gateway.take();
    say(&mut node, singer, 1, group, "la").unwrap();
    let items = gateway.take();
    let [Down::Deliver { body, targets }] = &items[..] else { panic!("{items:?} is no delivery") };
    assert_eq!((body.group, targets.len()), (group, 2), "the sender's own sessions get it too");
}

#[test]
fn a_repeated_send_gets_the_first_answer_even_after_the_sender_has_left() {
    let mut node = Node::memory();
    let Band { group, admin, singer, drummer, .. } = band(&mut node);
    let first = sent(node.ask(group_send(singer, 5, group, "la"))).unwrap();
    let again = sent(node.ask(group_send(singer, 5, group, "la"))).unwrap();
    assert_eq!(again, SendResult { duplicate: true, ..first });
    assert_eq!(say(&mut node, singer, 5, group, "lo"), Err(RequestError::Conflict));
    done(&mut node, device(singer), group, GroupAct::Leave).unwrap();
    let after = sent(node.ask(group_send(singer, 5, group, "la"))).unwrap();
    assert_eq!(after, again);
    assert_eq!(say(&mut node, singer, 6, group, "la"), Err(RequestError::NotInGroup));
    assert_eq!(texts(&node, admin.user), [(3, "la".to_owned())]);
    assert_eq!(texts(&node, drummer.user), [(3, "la".to_owned())]);
}

#[test]
fn only_members_who_are_not_muted_send() {
    let mut node = Node::memory();
    let Band { group, owner, admin, singer, stranger, .. } = band(&mut node);
    let nowhere = GroupId::new(u64::MAX);
    assert_eq!(say(&mut node, stranger, 1, group, "hi"), Err(RequestError::NotInGroup));
    assert_eq!(say(&mut node, singer, 1, nowhere, "hi"), Err(RequestError::GroupNotFound));
    let until_ms = node.now_ms + 100;
    done(&mut node, device(admin), group, GroupAct::Mute { user: singer.user, until_ms }).unwrap();
    let told = last::<v1::MuteGroupPush>(&node, singer.user);
    assert_eq!((told.0, told.1.user_id, told.1.until_ms), (126, singer.user.get(), until_ms));
    assert_eq!(say(&mut node, singer, 1, group, "la"), Err(RequestError::Muted));
    node.now_ms = until_ms;
    say(&mut node, singer, 1, group, "la").unwrap();
    done(&mut node, device(admin), group, GroupAct::MuteAll(true)).unwrap();
    assert_eq!(say(&mut node, singer, 2, group, "la"), Err(RequestError::Muted));
    say(&mut node, admin, 1, group, "quiet").unwrap();
    say(&mut node, owner, 1, group, "yes").unwrap();
    let as_singer = Actor::Backend(singer.user);
    let push = GroupAct::Push { command: 7, content: Bytes::from_static(b"news") };
    assert_eq!(node.ask(group_act(as_singer, group, push.clone(), "")), Err(RequestError::Muted));
    sent(node.ask(group_act(BACKEND, group, push, ""))).unwrap();
    done(&mut node, device(admin), group, GroupAct::MuteAll(false)).unwrap();
    say(&mut node, singer, 2, group, "la").unwrap();
    let wrong = Sender { proof: Proof::Token(admin.token), ..bare(singer) };
    let mut command = group_send(singer, 9, group, "x");
    if let Command::Send { sender, .. } = &mut command {
        *sender = wrong;
    }
    assert_eq!(node.ask(command), Err(RequestError::NotSignedIn));
}

#[test]
fn roles_say_who_may_do_what() {
    let mut node = Node::memory();
    let Band { group, owner, admin, singer, drummer, stranger } = band(&mut node);
    let refused = Err(RequestError::RoleTooLow);
    let set = |user: Account, role| GroupAct::SetRole { user: user.user, role };
    let mute = |user: Account| GroupAct::Mute { user: user.user, until_ms: i64::MAX };
    let name =
        |user: Account| GroupAct::SetMember { user: user.user, nickname: Some("star".into()), extra: None };
    let rename = GroupAct::Update(GroupChange { name: Some("duo".into()), ..GroupChange::default() });
    for (by, act, expected) in [
        (singer, rename.clone(), refused),
        (singer, GroupAct::MuteAll(true), refused),
        (singer, mute(drummer), refused),
        (singer, name(drummer), refused),
        (singer, name(singer), Ok(())),
        (singer, set(drummer, Role::Admin), refused),
        (singer, GroupAct::Transfer(singer.user), refused),
        (singer, GroupAct::Dissolve, refused),
        (admin, rename.clone(), Ok(())),
        (admin, mute(owner), refused),
        (admin, mute(admin), refused),
        (admin, mute(stranger), Err(RequestError::MemberNotFound)),
        (admin, name(drummer), Ok(())),
        (admin, set(drummer, Role::Admin), refused),
        (admin, GroupAct::Dissolve, refused),
        (owner, mute(admin), Ok(())),
        (owner, set(owner, Role::Member), Err(RequestError::IsOwner)),
        (owner, set(stranger, Role::Admin), Err(RequestError::MemberNotFound)),
        (owner, GroupAct::Leave, Err(RequestError::IsOwner)),
        (owner, GroupAct::Transfer(stranger.user), Err(RequestError::MemberNotFound)),
        (stranger, rename, Err(RequestError::NotInGroup)),
        (stranger, GroupAct::Leave, Err(RequestError::NotInGroup)),
    ] {
        assert_eq!(done(&mut node, device(by), group, act.clone()), expected, "{act:?} by {by:?}");
    }
    let mut remove = |by: Account, users: &[Account]| {
        let users = users.iter().map(|user| user.user).collect();
        members(node.ask(group_act(device(by), group, GroupAct::RemoveMembers(users), "")))
            .map(|(_, how)| how)
    };
    assert_eq!(remove(singer, &[drummer]), Err(RequestError::RoleTooLow));
    let how = remove(admin, &[owner, admin, stranger, drummer, drummer]).unwrap();
    let expected = [Verdict::Owner, Verdict::RoleTooHigh, Verdict::NoMember, Verdict::Done, Verdict::Done];
    assert_eq!(how, expected);
    done(&mut node, device(owner), group, GroupAct::Transfer(singer.user)).unwrap();
    let roles = [owner, admin, singer, drummer].map(|user| role_of(&node, group, user.user));
    assert_eq!(roles, [Some(Role::Admin), Some(Role::Admin), Some(Role::Owner), None]);
    done(&mut node, device(owner), group, GroupAct::Leave).unwrap();
    assert_eq!(role_of(&node, group, owner.user), None);
}

#[test]
fn members_are_told_of_every_change_and_those_who_go_too() {
    let mut node = Node::memory();
    let Band { group, owner, admin, singer, drummer, stranger } = band(&mut node);
    let commands = |node: &Node, user: Account| -> Vec<i32> {
        got(node, user.user).into_iter().map(|(_, command, _)| command).collect()
    };
    assert_eq!(commands(&node, singer), [121, 125]);
    let change = GroupChange { introduction: Some("loud".into()), ..GroupChange::default() };
    done(&mut node, device(owner), group, GroupAct::Update(change.clone())).unwrap();
    done(&mut node, device(owner), group, GroupAct::Update(change)).unwrap();
    let (command, told) = last::<v1::UpdateGroupPush>(&node, drummer.user);
    assert_eq!((command, told.opt_id, told.group_id), (120, owner.user.get(), group.get()));
    assert_eq!((told.name.as_str(), told.introduction.as_str()), ("band", "loud"));
    assert_eq!(commands(&node, drummer), [121, 125, 120], "what changes nothing is not told");
    let act = GroupAct::AddMembers(vec![stranger.user, singer.user, UserId::new(1), stranger.user]);
    let (_, how) = members(node.ask(group_act(device(admin), group, act, ""))).unwrap();
    assert_eq!(how, [Verdict::Done, Verdict::AlreadyMember, Verdict::NoUser, Verdict::Done]);
    let (command, told) = last::<v1::AddGroupMembersPush>(&node, stranger.user);
    assert_eq!((command, told.user_ids), (121, vec![stranger.user.get()]));
    assert_eq!(commands(&node, stranger), [121], "nobody gets what was before");
    done(&mut node, device(singer), group, GroupAct::Leave).unwrap();
    for member in [singer, owner, stranger] {
        let (command, told) = last::<v1::RemoveGroupMembersPush>(&node, member.user);
        assert_eq!((command, told.opt_id, told.user_ids), (122, singer.user.get(), vec![singer.user.get()]));
    }
    done(&mut node, device(owner), group, GroupAct::Transfer(admin.user)).unwrap();
    assert_eq!(last::<v1::TransferGroupPush>(&node, stranger.user).1.user_id, admin.user.get());
    done(&mut node, BACKEND, group, GroupAct::Dissolve).unwrap();
    assert_eq!(last::<v1::DissolveGroupPush>(&node, stranger.user).0, 123);
    assert_eq!(*commands(&node, singer).last().unwrap(), 122, "who has left is told no more");
    let back = GroupAct::AddMembers(vec![singer.user]);
    assert_eq!(members(node.ask(group_act(BACKEND, group, back, ""))), Err(RequestError::GroupNotFound));
    assert_eq!(say(&mut node, owner, 9, group, "?"), Err(RequestError::GroupNotFound));
    let mine = read::groups(&*node.store.snapshot(), owner.user, &[], 10).unwrap();
    assert!(mine.items.is_empty() && mine.next.is_none());
}

#[test]
fn a_key_gives_the_first_answer_again_and_another_body_is_a_conflict() {
    let mut node = Node::memory();
    let (anna, ben) = (node.account(None, "a"), node.account(None, "b"));
    let create = |users: &[UserId], key| {
        group_act(device(anna), GroupId::default(), create(UserId::default(), users), key)
    };
    let first = node.ask(create(&[ben.user, UserId::new(3)], "k1")).unwrap();
    assert_eq!(node.ask(create(&[ben.user, UserId::new(3)], "k1")).unwrap(), first);
    assert_eq!(node.ask(create(&[ben.user], "k1")), Err(RequestError::Conflict));
    let (group, _) = members(Ok(first)).unwrap();
    assert_eq!(got(&node, ben.user).len(), 1, "there is one group");
    let push = |text: &'static str, key| {
        let act = GroupAct::Push { command: 7, content: Bytes::from_static(text.as_bytes()) };
        group_act(BACKEND, group, act, key)
    };
    let answer = sent(node.ask(push("news", "k2"))).unwrap();
    let again = sent(node.ask(push("news", "k2"))).unwrap();
    assert_eq!(again, SendResult { duplicate: true, ..answer });
    assert_eq!(sent(node.ask(push("other", "k2"))), Err(RequestError::Conflict));
    let leave = || group_act(device(ben), group, GroupAct::Leave, "k3");
    assert_eq!(node.ask(leave()), Ok(Reply::Done));
    assert_eq!(node.ask(leave()), Ok(Reply::Done));
    assert_eq!(texts(&node, anna.user), [(2, "news".to_owned())]);
    assert_eq!(got(&node, ben.user).len(), 3);
}

#[test]
fn whoever_cannot_be_a_member_is_told_why_and_the_others_join() {
    let mut node = Node::memory();
    let [anna, ben, carl, dora] = ["a", "b", "c", "d"].map(|t| node.account(None, t));
    let block = Social::Block(anna.user);
    node.ask(Command::Social { by: device(ben), act: Box::new(block), idempotency: None }).unwrap();
    for _ in 0..GROUPS_MAX {
        made(&mut node, carl.user, &[]);
    }
    let users = [ben.user, carl.user, anna.user, dora.user];
    let act = group_act(device(anna), GroupId::default(), create(UserId::default(), &users), "");
    let (group, how) = members(node.ask(act)).unwrap();
    let expected = [Verdict::Blocked, Verdict::TooManyGroups, Verdict::AlreadyMember, Verdict::Done];
    assert_eq!(how, expected);
    assert_eq!(read::group(&*node.store.snapshot(), group, dora.user).unwrap().head.members, 2);
    let act = group_act(device(carl), GroupId::default(), create(UserId::default(), &[]), "");
    assert_eq!(members(node.ask(act)), Err(RequestError::TooMany { what: "groups of the owner" }));
    let mut pages = (0, 0, Vec::new());
    loop {
        let page = read::groups(&*node.store.snapshot(), carl.user, &pages.2, 200).unwrap();
        pages = (pages.0 + 1, pages.1 + page.items.len(), page.next.clone().unwrap_or_default());
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((pages.0, pages.1 as u64), (5, GROUPS_MAX));
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let mut node = Node::memory();
    let Band { group, owner, singer, .. } = band(&mut node);
    let before = dump(&*node.store);
    let long = |bytes| Some("x".repeat(bytes));
    let shows = |name, extra| GroupChange { name, extra, ..GroupChange::default() };
    let many = vec![UserId::new(1); MEMBERS_PER_CALL_MAX + 1];
    let new = GroupId::default();
    let some = |users| GroupAct::Create { shows: GroupChange::default(), owner: UserId::default(), users };
    for (by, group, act) in [
        (device(owner), group, GroupAct::Update(shows(long(129), None))),
        (device(owner), group, GroupAct::Update(shows(None, long(4097)))),
        (device(owner), group, GroupAct::AddMembers(Vec::new())),
        (device(owner), group, GroupAct::AddMembers(many.clone())),
        (device(owner), group, GroupAct::RemoveMembers(Vec::new())),
        (device(owner), group, GroupAct::SetRole { user: singer.user, role: Role::Owner }),
        (device(owner), group, GroupAct::Mute { user: singer.user, until_ms: -1 }),
        (device(owner), new, some(many)),
        (device(owner), new, create(singer.user, &[])),
        (device(owner), GroupId::new(77), some(Vec::new())),
        (BACKEND, GroupId::new(u64::MAX), create(owner.user, &[])),
        (BACKEND, new, some(Vec::new())),
        (BACKEND, group, GroupAct::Leave),
    ] {
        let refused = node.ask(group_act(by, group, act.clone(), "key"));
        assert!(matches!(refused, Err(RequestError::BadRequest { .. })), "{act:?}: {refused:?}");
    }
    for (by, group, act, error) in [
        (BACKEND, group, create(owner.user, &[]), RequestError::GroupExists),
        (BACKEND, new, create(UserId::new(9), &[]), RequestError::UserNotFound),
        (BACKEND, new, GroupAct::Dissolve, RequestError::GroupNotFound),
        (Actor::Backend(UserId::new(9)), group, GroupAct::Leave, RequestError::UserNotFound),
    ] {
        assert_eq!(node.ask(group_act(by, group, act.clone(), "key")), Err(error), "{act:?}");
    }
    let long = Bytes::from(vec![0; 61_441]);
    let push = GroupAct::Push { command: 1, content: long };
    assert_eq!(node.ask(group_act(BACKEND, group, push, "")), Err(RequestError::ContentTooLarge));
    let unnumbered = node.ask(group_send(owner, 0, group, "x"));
    assert!(matches!(unnumbered, Err(RequestError::BadRequest { field: "client_message_id", .. })));
    assert_eq!(dump(&*node.store), before);
    let chosen =
        members(node.ask(group_act(BACKEND, GroupId::new(77), create(owner.user, &[]), ""))).unwrap();
    assert_eq!(chosen.0, GroupId::new(77));
}
