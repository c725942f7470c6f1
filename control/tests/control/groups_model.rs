//! Any interleaving of what users and backends do to a group, against a plain model.

use std::collections::BTreeMap;

use bytes::Bytes;
use gimbal_codec::{GroupId, Seq, UserId};
use gimbal_control::command::group::{GroupAct, GroupChange};
use gimbal_control::command::social::Actor;
use gimbal_control::command::{Command, Reply};
use gimbal_control::error::RequestError;
use gimbal_control::group::read;
use gimbal_control::store::value::{Role, Verdict};
use proptest::prelude::*;

use crate::groups::{group_act, group_send, made};
use crate::support::{Account, Node, bare};

const USERS: usize = 5;

/// What somebody tries; users by their number.
#[derive(Clone, Debug)]
enum Try {
    Say,
    Rename(u8),
    Add(Vec<usize>),
    Remove(Vec<usize>),
    Leave,
    SetRole(usize, Role),
    Mute(usize, bool),
    MuteAll(bool),
    Transfer(usize),
    Dissolve,
}

/// Of a user by its device, of a backend for a user, or (`None`) for itself.
type By = Option<(usize, bool)>;

fn tries() -> impl Strategy<Value = Vec<(By, Try)>> {
    let user = || 0..USERS;
    let some = || proptest::collection::vec(0..USERS, 1..4);
    let role = prop_oneof![Just(Role::Member), Just(Role::Admin)];
    let one = prop_oneof![
        6 => Just(Try::Say),
        1 => (0..3_u8).prop_map(Try::Rename),
        3 => some().prop_map(Try::Add),
        2 => some().prop_map(Try::Remove),
        1 => Just(Try::Leave),
        3 => (user(), role).prop_map(|(user, role)| Try::SetRole(user, role)),
        2 => (user(), any::<bool>()).prop_map(|(user, muted)| Try::Mute(user, muted)),
        1 => any::<bool>().prop_map(Try::MuteAll),
        1 => user().prop_map(Try::Transfer),
    ];
    let one = prop_oneof![60 => one, 1 => Just(Try::Dissolve)];
    let by = prop_oneof![8 => (user(), any::<bool>()).prop_map(Some), 1 => Just(None)];
    proptest::collection::vec((by, one), 1..80)
}

/// The group as it should be, and what should be in each mailbox: places in the group's order.
struct Model {
    roles: BTreeMap<usize, Role>,
    muted: BTreeMap<usize, bool>,
    all_muted: bool,
    name: u8,
    is_dissolved: bool,
    next: u64,
    mailboxes: [Vec<u64>; USERS],
}

type Outcome = Result<Vec<Verdict>, RequestError>;

impl Model {
    fn new() -> Self {
        let mut model = Self {
            roles: BTreeMap::from([(0, Role::Owner)]),
            muted: BTreeMap::new(),
            all_muted: false,
            name: 9,
            is_dissolved: false,
            next: 1,
            mailboxes: Default::default(),
        };
        model.tell(&[]);
        model
    }

    /// All members, and others, find the next message.
    fn tell(&mut self, others: &[usize]) {
        for user in 0..USERS {
            if self.roles.contains_key(&user) || others.contains(&user) {
                self.mailboxes[user].push(self.next);
            }
        }
        self.next += 1;
    }

    fn attempt(&mut self, by: By, what: &Try) -> Outcome {
        if self.is_dissolved {
            return Err(RequestError::GroupNotFound);
        }
        // A backend for itself is above all.
        let rank = match by {
            None => 4,
            Some((user, _)) => *self.roles.get(&user).ok_or(RequestError::NotInGroup)? as u8,
        };
        self.with_rank(by, rank, what)
    }

    fn with_rank(&mut self, by: By, rank: u8, what: &Try) -> Outcome {
        let needs = |role: Role| if rank >= role as u8 { Ok(()) } else { Err(RequestError::RoleTooLow) };
        match what {
            Try::Say => {
                let is_muted = |(user, _): (usize, bool)| {
                    self.muted.get(&user) == Some(&true) || self.all_muted && rank == 1
                };
                if by.is_some_and(is_muted) {
                    return Err(RequestError::Muted);
                }
                self.tell(&[]);
            }
            Try::Rename(name) => {
                needs(Role::Admin)?;
                if std::mem::replace(&mut self.name, *name) != *name {
                    self.tell(&[]);
                }
            }
            Try::Add(users) => {
                needs(Role::Admin)?;
                return Ok(self.add(users));
            }
            Try::Remove(users) => {
                needs(Role::Admin)?;
                return Ok(self.remove(rank, users));
            }
            Try::Leave => match by {
                None => return Err(RequestError::BadRequest { field: "", rule: "" }),
                Some(_) if rank == 3 => return Err(RequestError::IsOwner),
                Some((user, _)) => drop(self.remove(4, &[user])),
            },
            Try::SetRole(..) | Try::Mute(..) | Try::Transfer(_) => self.of_one(rank, what)?,
            Try::MuteAll(muted) => {
                needs(Role::Admin)?;
                if std::mem::replace(&mut self.all_muted, *muted) != *muted {
                    self.tell(&[]);
                }
            }
            Try::Dissolve => {
                needs(Role::Owner)?;
                self.tell(&[]);
                self.is_dissolved = true;
            }
        }
        Ok(Vec::new())
    }

    /// What is done to one member.
    fn of_one(&mut self, rank: u8, what: &Try) -> Result<(), RequestError> {
        let needs = |role: Role| if rank >= role as u8 { Ok(()) } else { Err(RequestError::RoleTooLow) };
        let of = |roles: &BTreeMap<usize, Role>, user: &usize| {
            roles.get(user).copied().ok_or(RequestError::MemberNotFound)
        };
        match what {
            Try::SetRole(user, role) => {
                needs(Role::Owner)?;
                match of(&self.roles, user)? {
                    Role::Owner => return Err(RequestError::IsOwner),
                    was if was == *role => {}
                    _ => {
                        self.roles.insert(*user, *role);
                        self.tell(&[]);
                    }
                }
            }
            Try::Mute(user, muted) => {
                needs(Role::Admin)?;
                if rank <= of(&self.roles, user)? as u8 {
                    return Err(RequestError::RoleTooLow);
                }
                if self.muted.insert(*user, *muted).unwrap_or(false) != *muted {
                    self.tell(&[]);
                }
            }
            Try::Transfer(to) => {
                needs(Role::Owner)?;
                if of(&self.roles, to)? != Role::Owner {
                    for role in self.roles.values_mut().filter(|role| **role == Role::Owner) {
                        *role = Role::Admin;
                    }
                    self.roles.insert(*to, Role::Owner);
                    self.muted.remove(to);
                    self.tell(&[]);
                }
            }
            _ => unreachable!("it is about no member"),
        }
        Ok(())
    }

    fn add(&mut self, users: &[usize]) -> Vec<Verdict> {
        let verdict = |user: &usize| match self.roles.contains_key(user) {
            true => Verdict::AlreadyMember,
            false => Verdict::Done,
        };
        let verdicts: Vec<Verdict> = users.iter().map(verdict).collect();
        for (user, _) in users.iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Verdict::Done) {
            self.roles.insert(*user, Role::Member);
            self.muted.remove(user);
        }
        if verdicts.contains(&Verdict::Done) {
            self.tell(&[]);
        }
        verdicts
    }

    fn remove(&mut self, rank: u8, users: &[usize]) -> Vec<Verdict> {
        let verdict = |user: &usize| match self.roles.get(user) {
            None => Verdict::NoMember,
            Some(Role::Owner) => Verdict::Owner,
            Some(role) if rank <= *role as u8 => Verdict::RoleTooHigh,
            Some(_) => Verdict::Done,
        };
        let verdicts: Vec<Verdict> = users.iter().map(verdict).collect();
        let gone: Vec<usize> = users
            .iter()
            .zip(&verdicts)
            .filter(|(_, how)| **how == Verdict::Done)
            .map(|(user, _)| *user)
            .collect();
        self.roles.retain(|user, _| !gone.contains(user));
        if !gone.is_empty() {
            self.tell(&gone);
        }
        verdicts
    }
}

fn command(all: &[Account], group: GroupId, id: u64, by: By, what: &Try) -> Command {
    let user = |number: &usize| all[*number].user;
    let users = |numbers: &[usize]| numbers.iter().map(user).collect();
    let act = match what {
        Try::Say => match by {
            Some((number, true)) => return group_send(all[number], id, group, "hi"),
            _ => GroupAct::Push { command: 7, content: Bytes::from_static(b"hi") },
        },
        Try::Rename(name) => {
            GroupAct::Update(GroupChange { name: Some(name.to_string()), ..GroupChange::default() })
        }
        Try::Add(numbers) => GroupAct::AddMembers(users(numbers)),
        Try::Remove(numbers) => GroupAct::RemoveMembers(users(numbers)),
        Try::Leave => GroupAct::Leave,
        Try::SetRole(number, role) => GroupAct::SetRole { user: user(number), role: *role },
        Try::Mute(number, muted) => {
            GroupAct::Mute { user: user(number), until_ms: if *muted { i64::MAX } else { 0 } }
        }
        Try::MuteAll(muted) => GroupAct::MuteAll(*muted),
        Try::Transfer(number) => GroupAct::Transfer(user(number)),
        Try::Dissolve => GroupAct::Dissolve,
    };
    let by = match by {
        None => Actor::Backend(UserId::default()),
        Some((number, true)) => Actor::Device(bare(all[number])),
        Some((number, false)) => Actor::Backend(all[number].user),
    };
    group_act(by, group, act, "")
}

fn outcome(reply: Result<Reply, RequestError>) -> Outcome {
    match reply {
        Ok(Reply::Members { members, .. }) => Ok(members.into_iter().map(|(_, how)| how).collect()),
        Ok(_) => Ok(Vec::new()),
        Err(RequestError::BadRequest { .. }) => Err(RequestError::BadRequest { field: "", rule: "" }),
        Err(error) => Err(error),
    }
}

fn agrees(node: &Node, model: &Model, group: GroupId, all: &[Account]) {
    let view = node.store.snapshot();
    for (number, account) in all.iter().enumerate() {
        let role = read::group(&*view, group, account.user).ok().and_then(|page| page.me).map(|me| me.1.role);
        let expected = if model.is_dissolved { None } else { model.roles.get(&number).copied() };
        assert_eq!(role, expected, "role of {number}");
        let mine = read::groups(&*view, account.user, &[], 10).unwrap().items.len();
        assert_eq!(mine, usize::from(expected.is_some()), "groups of {number}");
        let page = node.store.page(account.user, Seq::new(0), 500, 1 << 20).unwrap();
        let got: Vec<u64> = page.entries.iter().map(|(_, body)| body.group_seq.get()).collect();
        assert_eq!(got, model.mailboxes[number], "mailbox of {number}");
    }
    if !model.is_dissolved {
        let page = read::group(&*view, group, UserId::default()).unwrap();
        assert_eq!(page.head.members as usize, model.roles.len());
        let members = read::members(&*view, group, &[], 100).unwrap().items.len();
        assert_eq!(members, model.roles.len());
        assert_eq!(page.head.next.get(), model.next);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// In batches of any length, so that commands see what those before them in the same batch have done.
    #[test]
    fn a_group_is_what_its_model_is(tries in tries(), batch in 1..8_usize) {
        let mut node = Node::memory();
        let all: Vec<Account> = (0..USERS).map(|at| node.account(None, &format!("{at}"))).collect();
        let group = made(&mut node, all[0].user, &[]);
        let mut model = Model::new();
        for (at, some) in tries.chunks(batch).enumerate() {
            let id = |within: usize| (at * batch + within + 1) as u64;
            let commands =
                some.iter().enumerate().map(|(within, (by, what))| command(&all, group, id(within), *by, what));
            let replies = node.turn(commands.collect());
            for ((by, what), reply) in some.iter().zip(replies) {
                assert_eq!(outcome(reply), model.attempt(*by, what), "{what:?} by {by:?}");
            }
            agrees(&node, &model, group, &all);
        }
    }
}
