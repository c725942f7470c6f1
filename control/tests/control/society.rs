//! Friends, blocks, several groups and messages of the same people at once, where only friends may write or anybody, against
//! a plain model: also when the process dies around its commits, and everybody asks again for what was not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use gimbal_codec::{GroupId, Seq, UserId};
use gimbal_control::command::group::{GroupAct, GroupChange};
use gimbal_control::command::social::{Actor, Social};
use gimbal_control::command::{Command, Reply};
use gimbal_control::error::RequestError;
use gimbal_control::group::read as groups;
use gimbal_control::log::EmbeddedLog;
use gimbal_control::social::read as people;
use gimbal_control::store::Store;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::store::value::{Friendship, Role, Verdict};
use proptest::prelude::*;

use crate::groups::{group_act, group_send};
use crate::sim::faults::{Crash, CrashingLog, Plan};
use crate::support::{Account, Node, bare, dump, key, send};

const USERS: usize = 5;
/// Groups that are acted upon; later ones are only founded.
const GROUPS: usize = 3;

type Who = usize;

#[derive(Clone, Debug)]
enum Try {
    Say(Who),
    Ask(Who),
    Agree(Who),
    Decline(Who),
    Unfriend(Who),
    Block(Who),
    Unblock(Who),
    Found(Vec<Who>),
    SayIn(usize),
    Enlist(usize, Vec<Who>),
    Expel(usize, Vec<Who>),
    Leave(usize),
    SetRole(usize, Who, Role),
    Mute(usize, Who, bool),
    HandOn(usize, Who),
    Dissolve(usize),
}

#[derive(Clone, PartialEq, Debug)]
enum Out {
    Done,
    Friendship(Friendship),
    Members(Vec<Verdict>),
    /// Its place.
    Sent(u64),
}

type Outcome = Result<Out, RequestError>;

/// What happens to a batch.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    Dies(Crash),
}

fn tries() -> impl Strategy<Value = Vec<(Vec<(Who, Try)>, Fate)>> {
    let (user, group) = (0..USERS, 0..GROUPS);
    let some = || proptest::collection::vec(0..USERS, 1..4);
    let role = prop_oneof![Just(Role::Member), Just(Role::Admin)];
    let one = prop_oneof![
        8 => user.clone().prop_map(Try::Say),
        4 => user.clone().prop_map(Try::Ask),
        4 => user.clone().prop_map(Try::Agree),
        1 => user.clone().prop_map(Try::Decline),
        1 => user.clone().prop_map(Try::Unfriend),
        2 => user.clone().prop_map(Try::Block),
        3 => user.clone().prop_map(Try::Unblock),
        2 => some().prop_map(Try::Found),
        8 => group.clone().prop_map(Try::SayIn),
        4 => (group.clone(), some()).prop_map(|(group, users)| Try::Enlist(group, users)),
        2 => (group.clone(), some()).prop_map(|(group, users)| Try::Expel(group, users)),
        1 => group.clone().prop_map(Try::Leave),
        2 => (group.clone(), user.clone(), role).prop_map(|(group, user, role)| Try::SetRole(group, user, role)),
        2 => (group.clone(), user.clone(), any::<bool>()).prop_map(|(group, user, on)| Try::Mute(group, user, on)),
        1 => (group.clone(), user.clone()).prop_map(|(group, user)| Try::HandOn(group, user)),
    ];
    let one = prop_oneof![80 => one, 1 => group.prop_map(Try::Dissolve)];
    let fate = prop_oneof![
        4 => Just(Fate::Lives),
        1 => Just(Fate::Dies(Crash::BeforeCommit)),
        1 => Just(Fate::Dies(Crash::AfterCommit)),
    ];
    let batch = proptest::collection::vec((user, one), 1..12);
    proptest::collection::vec((batch, fate), 1..16)
}

#[derive(Default)]
struct Group {
    roles: BTreeMap<Who, Role>,
    muted: BTreeSet<Who>,
    is_dissolved: bool,
    next: u64,
}

/// A message: who from, which group and place (0: none), its type code, and which act it was (0: the server's own words).
type Entry = (Who, (usize, u64), i32, u64);

#[derive(Default)]
struct Model {
    friends_only: bool,
    friends: BTreeMap<(Who, Who), Friendship>,
    blocks: BTreeSet<(Who, Who)>,
    groups: Vec<Group>,
    /// Groups that people know of: those of a batch are known after it.
    known: usize,
    mailboxes: [Vec<Entry>; USERS],
}

impl Model {
    fn check_wanted(&self, from: Who, to: Who) -> Result<(), RequestError> {
        if self.blocks.contains(&(to, from)) {
            return Err(RequestError::Blocked);
        }
        let are_friends = self.friends.get(&(to, from)) == Some(&Friendship::Friends);
        if self.friends_only && from != to && !are_friends {
            return Err(RequestError::FriendNotFound);
        }
        Ok(())
    }

    fn set(&mut self, one: Who, other: Who, of_one: Friendship, of_other: Friendship) {
        self.friends.extend([((one, other), of_one), ((other, one), of_other)]);
    }

    fn part(&mut self, one: Who, other: Who) {
        self.friends.retain(|pair, _| *pair != (one, other) && *pair != (other, one));
    }

    fn attempt(&mut self, id: u64, by: Who, what: &Try) -> Outcome {
        match *what {
            Try::Say(to) => {
                self.check_wanted(by, to)?;
                self.mailboxes[to].push((by, (0, 0), 7, id));
                Ok(Out::Sent(self.mailboxes[to].len() as u64))
            }
            Try::Ask(to) => self.ask(by, to),
            Try::Agree(to) => self.agree(by, to),
            Try::Decline(to) | Try::Unfriend(to) => self.end(by, to, matches!(what, Try::Decline(_))),
            Try::Block(to) if by == to => Err(bad()),
            Try::Block(to) => {
                self.blocks.insert((by, to));
                Ok(Out::Done)
            }
            Try::Unblock(to) => {
                self.blocks.remove(&(by, to));
                Ok(Out::Done)
            }
            Try::Found(ref users) => Ok(self.found(by, users)),
            Try::SayIn(at)
            | Try::Enlist(at, _)
            | Try::Expel(at, _)
            | Try::Leave(at)
            | Try::SetRole(at, ..)
            | Try::Mute(at, ..)
            | Try::HandOn(at, _)
            | Try::Dissolve(at) => self.in_group(id, by, at, what),
        }
    }

    fn ask(&mut self, by: Who, to: Who) -> Outcome {
        if by == to {
            return Err(bad());
        }
        if self.blocks.contains(&(by, to)) || self.blocks.contains(&(to, by)) {
            return Err(RequestError::Blocked);
        }
        match self.friends.get(&(by, to)) {
            Some(Friendship::Friends) => Err(RequestError::AlreadyFriends),
            Some(Friendship::Asked) => Ok(Out::Friendship(Friendship::Asked)),
            Some(Friendship::WasAsked) => {
                self.agree(by, to)?;
                Ok(Out::Friendship(Friendship::Friends))
            }
            None => {
                self.set(by, to, Friendship::Asked, Friendship::WasAsked);
                self.mailboxes[to].push((by, (0, 0), 110, 0));
                Ok(Out::Friendship(Friendship::Asked))
            }
        }
    }

    fn agree(&mut self, by: Who, to: Who) -> Outcome {
        match self.friends.get(&(by, to)) {
            Some(Friendship::Friends) => {}
            Some(Friendship::WasAsked) => {
                self.set(by, to, Friendship::Friends, Friendship::Friends);
                self.mailboxes[to].push((by, (0, 0), 111, 0));
            }
            _ => return Err(RequestError::FriendNotFound),
        }
        Ok(Out::Done)
    }

    fn end(&mut self, by: Who, to: Who, declines: bool) -> Outcome {
        let known = self.friends.get(&(by, to)).copied();
        let known = known.filter(|known| (*known == Friendship::WasAsked) == declines);
        let before = known.ok_or(RequestError::FriendNotFound)?;
        self.part(by, to);
        if before == Friendship::Friends {
            self.mailboxes[to].push((by, (0, 0), 112, 0));
        }
        Ok(Out::Done)
    }

    fn found(&mut self, by: Who, users: &[Who]) -> Out {
        self.groups.push(Group { roles: [(by, Role::Owner)].into(), next: 1, ..Group::default() });
        let at = self.groups.len() - 1;
        let verdicts = self.join(at, by, users);
        self.tell(at, by, 121, 0, &[]);
        Out::Members(verdicts)
    }

    /// Each user once: who is named again hears the same.
    fn join(&mut self, at: usize, by: Who, users: &[Who]) -> Vec<Verdict> {
        let before: BTreeSet<Who> = self.groups[at].roles.keys().copied().collect();
        let verdict = |user: &Who| match self.check_wanted(by, *user) {
            _ if before.contains(user) => Verdict::AlreadyMember,
            Ok(()) => Verdict::Done,
            Err(RequestError::Blocked) => Verdict::Blocked,
            Err(_) => Verdict::NoFriend,
        };
        let verdicts: Vec<Verdict> = users.iter().map(verdict).collect();
        let group = &mut self.groups[at];
        for (user, _) in users.iter().zip(&verdicts).filter(|(_, how)| **how == Verdict::Done) {
            group.roles.insert(*user, Role::Member);
            group.muted.remove(user);
        }
        verdicts
    }

    /// A message of the group at its next place, for its members and some others.
    fn tell(&mut self, at: usize, by: Who, command: i32, id: u64, others: &[Who]) -> Out {
        let group = &mut self.groups[at];
        let seq = group.next;
        group.next += 1;
        for user in (0..USERS).filter(|user| group.roles.contains_key(user) || others.contains(user)) {
            self.mailboxes[user].push((by, (at + 1, seq), command, id));
        }
        Out::Sent(seq)
    }

    fn in_group(&mut self, id: u64, by: Who, at: usize, what: &Try) -> Outcome {
        let group = self.groups.get(at).filter(|group| at < self.known && !group.is_dissolved);
        let group = group.ok_or(RequestError::GroupNotFound)?;
        let mine = *group.roles.get(&by).ok_or(RequestError::NotInGroup)?;
        let needs = |role: Role| if mine >= role { Ok(()) } else { Err(RequestError::RoleTooLow) };
        match *what {
            Try::SayIn(_) if group.muted.contains(&by) => Err(RequestError::Muted),
            Try::SayIn(_) => Ok(self.tell(at, by, 7, id, &[])),
            Try::Enlist(_, ref users) => {
                needs(Role::Admin)?;
                let verdicts = self.join(at, by, users);
                if verdicts.contains(&Verdict::Done) {
                    self.tell(at, by, 121, 0, &[]);
                }
                Ok(Out::Members(verdicts))
            }
            Try::Expel(_, ref users) => {
                needs(Role::Admin)?;
                Ok(Out::Members(self.expel(at, by, mine, users)))
            }
            Try::Leave(_) if mine == Role::Owner => Err(RequestError::IsOwner),
            Try::Leave(_) => {
                self.go(at, by, &[by]);
                Ok(Out::Done)
            }
            Try::Mute(_, user, muted) => {
                needs(Role::Admin)?;
                let theirs = *group.roles.get(&user).ok_or(RequestError::MemberNotFound)?;
                if theirs >= mine {
                    return Err(RequestError::RoleTooLow);
                }
                let group = &mut self.groups[at];
                if if muted { group.muted.insert(user) } else { group.muted.remove(&user) } {
                    self.tell(at, by, 126, 0, &[]);
                }
                Ok(Out::Done)
            }
            _ => {
                needs(Role::Owner)?;
                self.by_owner(at, by, what)
            }
        }
    }

    fn by_owner(&mut self, at: usize, by: Who, what: &Try) -> Outcome {
        let group = &mut self.groups[at];
        match *what {
            Try::SetRole(_, user, role) => match group.roles.get_mut(&user) {
                None => return Err(RequestError::MemberNotFound),
                Some(Role::Owner) => return Err(RequestError::IsOwner),
                Some(theirs) if *theirs == role => {}
                Some(theirs) => {
                    *theirs = role;
                    self.tell(at, by, 125, 0, &[]);
                }
            },
            Try::HandOn(_, user) if !group.roles.contains_key(&user) => {
                return Err(RequestError::MemberNotFound);
            }
            Try::HandOn(_, user) if user == by => {}
            Try::HandOn(_, user) => {
                group.roles.extend([(by, Role::Admin), (user, Role::Owner)]);
                group.muted.remove(&user);
                self.tell(at, by, 124, 0, &[]);
            }
            _ => {
                self.tell(at, by, 123, 0, &[]);
                let group = &mut self.groups[at];
                group.is_dissolved = true;
                group.roles.clear();
            }
        }
        Ok(Out::Done)
    }

    fn expel(&mut self, at: usize, by: Who, mine: Role, users: &[Who]) -> Vec<Verdict> {
        let verdict = |user: &Who| match self.groups[at].roles.get(user) {
            None => Verdict::NoMember,
            Some(Role::Owner) => Verdict::Owner,
            Some(theirs) if *theirs >= mine => Verdict::RoleTooHigh,
            Some(_) => Verdict::Done,
        };
        let verdicts: Vec<Verdict> = users.iter().map(verdict).collect();
        let gone = users.iter().zip(&verdicts).filter(|(_, how)| **how == Verdict::Done);
        let gone: Vec<Who> = gone.map(|(user, _)| *user).collect();
        if !gone.is_empty() {
            self.go(at, by, &gone);
        }
        verdicts
    }

    fn go(&mut self, at: usize, by: Who, users: &[Who]) {
        let group = &mut self.groups[at];
        group.roles.retain(|user, _| !users.contains(user));
        group.muted.retain(|user| !users.contains(user));
        self.tell(at, by, 122, 0, users);
    }
}

fn bad() -> RequestError {
    RequestError::BadRequest { field: "", rule: "" }
}

/// Everybody, and control over what is durable.
struct World {
    node: Node,
    plan: Plan,
    epoch: u32,
    friends_only: bool,
    all: Vec<Account>,
    /// As they were made.
    groups: Vec<GroupId>,
}

impl World {
    fn new(friends_only: bool) -> Self {
        let (node, plan) = life(Arc::new(MemoryStore::new()), friends_only);
        let mut world = Self { node, plan, epoch: 1, friends_only, all: Vec::new(), groups: Vec::new() };
        world.all = (0..USERS).map(|at| world.node.account(None, &at.to_string())).collect();
        world
    }

    /// A new life over what is durable.
    fn restart(&mut self) {
        self.epoch += 1;
        let store = Arc::new(MemoryStore::from_dump(dump(&*self.node.store), self.epoch));
        (self.node, self.plan) = life(store, self.friends_only);
    }

    fn command(&self, id: u64, by: Who, what: &Try) -> Command {
        let (me, user) = (self.all[by], |who: Who| self.all[who].user);
        let users = |all: &[Who]| all.iter().map(|who| user(*who)).collect();
        let named = id.to_string();
        let group = |at: usize, act: GroupAct| {
            let group = self.groups.get(at).copied().unwrap_or(GroupId::new(1));
            group_act(Actor::Device(bare(me)), group, act, &named)
        };
        let social = |act: Social| Command::Social {
            by: Actor::Device(bare(me)),
            act: Box::new(act),
            idempotency: key(&named),
        };
        match *what {
            Try::Say(to) => send(me, id, user(to), "words"),
            Try::Ask(to) => social(Social::AddFriend {
                friend: user(to),
                remark: String::new(),
                description: String::new(),
            }),
            Try::Agree(to) => social(Social::AgreeFriend { friend: user(to), remark: String::new() }),
            Try::Decline(to) => social(Social::DeclineFriend(user(to))),
            Try::Unfriend(to) => social(Social::RemoveFriend(user(to))),
            Try::Block(to) => social(Social::Block(user(to))),
            Try::Unblock(to) => social(Social::Unblock(user(to))),
            Try::Found(ref others) => {
                let (shows, owner) = (GroupChange::default(), UserId::default());
                let create = GroupAct::Create { shows, owner, users: users(others) };
                group_act(Actor::Device(bare(me)), GroupId::default(), create, &named)
            }
            Try::SayIn(at) => {
                group_send(me, id, self.groups.get(at).copied().unwrap_or(GroupId::new(1)), "words")
            }
            Try::Enlist(at, ref others) => group(at, GroupAct::AddMembers(users(others))),
            Try::Expel(at, ref others) => group(at, GroupAct::RemoveMembers(users(others))),
            Try::Leave(at) => group(at, GroupAct::Leave),
            Try::SetRole(at, who, role) => group(at, GroupAct::SetRole { user: user(who), role }),
            Try::Mute(at, who, muted) => {
                let until_ms = if muted { i64::MAX } else { 0 };
                group(at, GroupAct::Mute { user: user(who), until_ms })
            }
            Try::HandOn(at, who) => group(at, GroupAct::Transfer(user(who))),
            Try::Dissolve(at) => group(at, GroupAct::Dissolve),
        }
    }

    /// All of them in one batch.
    fn ask(&mut self, batch: &[(u64, Who, Try)]) -> Vec<Outcome> {
        let commands = batch.iter().map(|(id, by, what)| self.command(*id, *by, what)).collect();
        let replies = self.node.turn(commands);
        let found = batch.iter().map(|(_, _, what)| matches!(what, Try::Found(_)));
        replies.into_iter().zip(found).map(|(reply, found)| self.outcome(reply, found)).collect()
    }

    fn outcome(&mut self, reply: Result<Reply, RequestError>, found: bool) -> Outcome {
        match reply {
            Ok(Reply::Members { group, members }) => {
                if found && !self.groups.contains(&group) {
                    self.groups.push(group);
                }
                Ok(Out::Members(members.into_iter().map(|(_, how)| how).collect()))
            }
            Ok(Reply::Friendship(friendship)) => Ok(Out::Friendship(friendship)),
            Ok(Reply::Sent(sent)) => Ok(Out::Sent(sent.seq.get())),
            Ok(_) => Ok(Out::Done),
            Err(RequestError::BadRequest { .. }) => Err(bad()),
            Err(error) => Err(error),
        }
    }

    fn check(&self, model: &Model) {
        let view = self.node.store.snapshot();
        let number = |user: UserId| self.all.iter().position(|account| account.user == user).unwrap();
        for (who, account) in self.all.iter().enumerate() {
            for kind in [Friendship::Friends, Friendship::Asked, Friendship::WasAsked] {
                let page = people::friends(&*view, account.user, kind, &[], 100).unwrap();
                let found: Vec<Who> = page.items.iter().map(|(page, _)| number(page.user)).collect();
                let wanted = model.friends.iter().filter(|((of, _), known)| *of == who && **known == kind);
                assert_eq!(
                    found,
                    wanted.map(|((_, other), _)| *other).collect::<Vec<_>>(),
                    "{kind:?} of {who}"
                );
            }
            let blocked = people::blocked(&*view, account.user, &[], 100).unwrap().items;
            let blocked: Vec<(Who, Who)> = blocked.iter().map(|page| (who, number(page.user))).collect();
            let wanted: Vec<(Who, Who)> = model.blocks.range((who, 0)..(who + 1, 0)).copied().collect();
            assert_eq!(blocked, wanted, "blocked by {who}");
            let mine = groups::groups(&*view, account.user, &[], 100).unwrap().items;
            let mine: BTreeMap<GroupId, Role> =
                mine.iter().map(|page| (page.group, page.me.as_ref().unwrap().1.role)).collect();
            let wanted = self.groups.iter().zip(&model.groups);
            let wanted = wanted.filter_map(|(id, group)| Some((*id, *group.roles.get(&who)?)));
            assert_eq!(mine, wanted.collect(), "groups of {who}");
            let page = self.node.store.page(account.user, Seq::new(0), 500, 1 << 20).unwrap();
            let place =
                |group: GroupId| self.groups.iter().position(|known| *known == group).map_or(0, |at| at + 1);
            let got = page.entries.iter().map(|(_, body)| {
                (number(body.from_user), (place(body.group), body.group_seq.get()), body.command)
            });
            let wanted =
                model.mailboxes[who].iter().map(|(from, place, command, _)| (*from, *place, *command));
            assert_eq!(got.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "mailbox of {who}");
        }
    }
}

fn life(store: Arc<dyn Store>, friends_only: bool) -> (Node, Plan) {
    let plan: Plan = Arc::new(Mutex::new(None));
    let inner = EmbeddedLog::new(Arc::clone(&store));
    let mut node = Node::with_log(store, Box::new(CrashingLog { inner, plan: Arc::clone(&plan) }));
    node.engine.set_friends_only(friends_only);
    (node, plan)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whoever hears nothing asks again, by the same ids and keys: what was done then gets its first answer, and what was
    /// refused is judged anew.
    #[test]
    fn people_and_groups_are_what_their_model_is_through_every_crash(
        batches in tries(),
        friends_only in any::<bool>(),
    ) {
        let (mut world, mut model) = (World::new(friends_only), Model { friends_only, ..Model::default() });
        let mut id = 0;
        for (batch, fate) in &batches {
            let mut asked = Vec::new();
            model.known = world.groups.len();
            for (by, what) in batch {
                id += 1;
                asked.push((id, *by, what.clone()));
            }
            let mut first: Vec<Option<Outcome>> = vec![None; asked.len()];
            if let Fate::Dies(crash) = fate {
                *world.plan.lock().unwrap() = Some(*crash);
                // Nobody hears what the dying process says.
                let told = world.ask(&asked);
                // A batch that wrote nothing had no commit to die of.
                if told.contains(&Err(RequestError::Unavailable)) && *crash == Crash::AfterCommit {
                    for (first, (id, by, what)) in first.iter_mut().zip(&asked) {
                        *first = Some(model.attempt(*id, *by, what)).filter(Result::is_ok);
                    }
                }
                world.restart();
            }
            let told = world.ask(&asked);
            for ((told, first), (id, by, what)) in told.into_iter().zip(first).zip(&asked) {
                let wanted = first.unwrap_or_else(|| model.attempt(*id, *by, what));
                prop_assert_eq!(told, wanted, "{:?} by {}", what, by);
            }
            world.check(&model);
        }
    }
}
