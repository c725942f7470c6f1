//! The product as it should be: who knows whom, who is in which group, and what is in each mailbox. Pure.
//!
//! [`Model::attempt`] says what the server has to answer to an act, and does it here. Acts that touch the same pair of people
//! or the same group are tried one after the other; what comes from one person or one group therefore has an order,
//! and a mailbox is any mixture of those orders.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gimbal_rpc::v1::{
    self, AddFriendPush, AddGroupMembersPush, AgreeAddFriendPush, DissolveGroupPush, GroupRole,
    MuteGroupPush, RemoveFriendPush, RemoveGroupMembersPush, SetGroupRolePush, TransferGroupPush,
};
use prost::Message as _;

/// A person, by number.
pub(super) type Who = usize;
/// A group, by number.
pub(super) type Where = usize;

/// Type code of what people say.
pub(super) const SAID: i32 = 1;
/// Until it is taken back.
pub(super) const FOR_EVER_MS: i64 = i64::MAX;

/// What somebody tries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// To a person.
    Say {
        from: Who,
        to: Who,
    },
    /// To a group.
    SayAll {
        from: Who,
        group: Where,
    },
    /// Asks to be a friend, or agrees.
    Ask {
        by: Who,
        to: Who,
    },
    Agree {
        by: Who,
        to: Who,
    },
    Decline {
        by: Who,
        to: Who,
    },
    Unfriend {
        by: Who,
        to: Who,
    },
    Block {
        by: Who,
        to: Who,
    },
    Unblock {
        by: Who,
        to: Who,
    },
    /// Makes a group.
    Found {
        by: Who,
        users: Vec<Who>,
    },
    Enlist {
        by: Who,
        group: Where,
        user: Who,
    },
    Expel {
        by: Who,
        group: Where,
        user: Who,
    },
    Leave {
        by: Who,
        group: Where,
    },
    SetRole {
        by: Who,
        group: Where,
        user: Who,
        role: GroupRole,
    },
    Mute {
        by: Who,
        group: Where,
        user: Who,
        muted: bool,
    },
    HandOn {
        by: Who,
        group: Where,
        user: Who,
    },
    Dissolve {
        by: Who,
        group: Where,
    },
    /// A new person.
    SignUp,
}

/// What the server answered that nobody could have known before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Made {
    /// Of a new person.
    pub(super) user: u64,
    /// Of a new group.
    pub(super) group: u64,
}

/// The server's word on an act: on each user it names (empty: done), or the reason for which it is refused.
pub(super) type Word = Result<Vec<String>, String>;

/// A message as it is in a mailbox.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    /// Sender's user id.
    pub(super) from: u64,
    /// Group id and place in its order; 0: none.
    pub(super) place: (u64, u64),
    pub(super) command: i32,
    pub(super) what: What,
}

/// What it says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum What {
    /// The act that it was.
    Said(u32),
    /// The server's own words.
    Told(Arc<[u8]>),
}

/// Of what one user is to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tie {
    pub(super) friendship: v1::Friendship,
    pub(super) blocks: bool,
}

/// A group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) id: u64,
    next: u64,
    /// By user.
    pub(super) members: BTreeMap<Who, Member>,
    pub(super) is_dissolved: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) role: GroupRole,
    pub(super) is_muted: bool,
}

/// All of it.
#[derive(Default)]
pub(super) struct Model {
    /// User ids.
    pub(super) people: Vec<u64>,
    /// What should be in each mailbox, in the order in which the acts were answered.
    pub(super) mailboxes: Vec<Vec<Entry>>,
    pub(super) ties: HashMap<(Who, Who), Tie>,
    pub(super) groups: Vec<Group>,
    /// What the event stream should tell of people: who did what about whom.
    pub(super) deeds: Vec<(Who, v1::EventAct, Who)>,
    /// Recipients of what was said between two.
    pub(super) said: HashMap<u32, (Who, Who)>,
    /// Senders find what they say in their own mailboxes.
    pub(super) own_copies: bool,
}

fn refuse<T>(reason: &str) -> Result<T, String> {
    Err(reason.to_owned())
}

impl Model {
    /// A person that the server knows.
    pub(super) fn welcome(&mut self, user: u64) {
        self.people.push(user);
        self.mailboxes.push(Vec::new());
    }

    pub(super) fn tie(&self, of: Who, to: Who) -> Tie {
        self.ties.get(&(of, to)).copied().unwrap_or_default()
    }

    fn set(&mut self, of: Who, to: Who, friendship: v1::Friendship) {
        self.ties.entry((of, to)).or_default().friendship = friendship;
    }

    /// What the server has to answer to the act with this number, which is then done.
    pub(super) fn attempt(&mut self, number: u32, act: &Act, made: Made) -> Word {
        match *act {
            Act::Say { from, to } => self.say(number, from, to)?,
            Act::Ask { by, to } => self.ask(by, to)?,
            Act::Agree { by, to } => self.agree(by, to)?,
            Act::Decline { by, to } => self.decline(by, to)?,
            Act::Unfriend { by, to } => self.unfriend(by, to)?,
            Act::Block { by, to } => self.set_block(by, to, true),
            Act::Unblock { by, to } => self.set_block(by, to, false),
            Act::SignUp => self.welcome(made.user),
            Act::Found { by, ref users } => return Ok(self.found(by, users, made.group)),
            _ => return self.in_group(number, act),
        }
        Ok(Vec::new())
    }

    fn put(&mut self, to: Who, from: Who, place: (u64, u64), command: i32, what: What) {
        let from = self.people[from];
        self.mailboxes[to].push(Entry { from, place, command, what });
    }

    fn say(&mut self, number: u32, from: Who, to: Who) -> Result<(), String> {
        if self.tie(to, from).blocks {
            return refuse("blocked");
        }
        self.said.insert(number, (from, to));
        self.put(to, from, (0, 0), SAID, What::Said(number));
        if self.own_copies && from != to {
            self.put(from, from, (0, 0), SAID, What::Said(number));
        }
        Ok(())
    }

    fn tell(&mut self, to: Who, by: Who, command: i32, content: Vec<u8>) {
        self.put(to, by, (0, 0), command, What::Told(content.into()));
    }

    fn ask(&mut self, by: Who, to: Who) -> Result<(), String> {
        if self.tie(by, to).blocks || self.tie(to, by).blocks {
            return refuse("blocked");
        }
        match self.tie(by, to).friendship {
            v1::Friendship::Friends => refuse("already_friends"),
            v1::Friendship::Asked => Ok(()),
            v1::Friendship::WasAsked => self.agree(by, to),
            v1::Friendship::Unspecified => {
                self.set(by, to, v1::Friendship::Asked);
                self.set(to, by, v1::Friendship::WasAsked);
                self.deeds.push((by, v1::EventAct::FriendAsked, to));
                let told = AddFriendPush { friend_id: self.people[by], ..AddFriendPush::default() };
                self.tell(to, by, 110, told.encode_to_vec());
                Ok(())
            }
        }
    }

    fn agree(&mut self, by: Who, to: Who) -> Result<(), String> {
        match self.tie(by, to).friendship {
            v1::Friendship::Friends => Ok(()),
            v1::Friendship::WasAsked => {
                self.set(by, to, v1::Friendship::Friends);
                self.set(to, by, v1::Friendship::Friends);
                self.deeds.push((by, v1::EventAct::FriendAgreed, to));
                let told = AgreeAddFriendPush { friend_id: self.people[by], ..AgreeAddFriendPush::default() };
                self.tell(to, by, 111, told.encode_to_vec());
                Ok(())
            }
            _ => refuse("friend_not_found"),
        }
    }

    fn part(&mut self, by: Who, to: Who, act: v1::EventAct) {
        self.set(by, to, v1::Friendship::Unspecified);
        self.set(to, by, v1::Friendship::Unspecified);
        self.deeds.push((by, act, to));
    }

    fn decline(&mut self, by: Who, to: Who) -> Result<(), String> {
        if self.tie(by, to).friendship != v1::Friendship::WasAsked {
            return refuse("friend_not_found");
        }
        self.part(by, to, v1::EventAct::FriendDeclined);
        Ok(())
    }

    fn unfriend(&mut self, by: Who, to: Who) -> Result<(), String> {
        let before = self.tie(by, to).friendship;
        if matches!(before, v1::Friendship::Unspecified | v1::Friendship::WasAsked) {
            return refuse("friend_not_found");
        }
        self.part(by, to, v1::EventAct::FriendRemoved);
        if before == v1::Friendship::Friends {
            let told = RemoveFriendPush { friend_id: self.people[by] };
            self.tell(to, by, 112, told.encode_to_vec());
        }
        Ok(())
    }

    fn set_block(&mut self, by: Who, to: Who, blocks: bool) {
        let tie = self.ties.entry((by, to)).or_default();
        if std::mem::replace(&mut tie.blocks, blocks) != blocks {
            let act = if blocks { v1::EventAct::Blocked } else { v1::EventAct::Unblocked };
            self.deeds.push((by, act, to));
        }
    }

    /// What becomes of each of `users`: whoever blocks the owner stays away.
    fn found(&mut self, by: Who, users: &[Who], id: u64) -> Vec<String> {
        let mut group = Group { id, next: 1, ..Group::default() };
        group.members.insert(by, Member { role: GroupRole::Owner, is_muted: false });
        let mut words = Vec::new();
        let mut added = vec![self.people[by]];
        for &user in users {
            let is_blocked = self.tie(user, by).blocks;
            words.push(if is_blocked { "blocked".to_owned() } else { String::new() });
            if !is_blocked {
                group.members.insert(user, Member { role: GroupRole::Member, is_muted: false });
                added.push(self.people[user]);
            }
        }
        self.groups.push(group);
        let (group_id, opt_id) = (id, self.people[by]);
        let told =
            AddGroupMembersPush { group_id, opt_id, user_ids: added, ..AddGroupMembersPush::default() };
        self.tell_all(self.groups.len() - 1, by, 121, told.encode_to_vec(), None);
        words
    }

    /// A notice at the next place of the group's order, for its members and for one who is none any more.
    fn tell_all(&mut self, at: Where, by: Who, command: i32, content: Vec<u8>, also: Option<Who>) {
        self.post(at, by, command, What::Told(content.into()), also);
    }

    fn post(&mut self, at: Where, by: Who, command: i32, what: What, also: Option<Who>) {
        let group = &mut self.groups[at];
        let place = (group.id, group.next);
        group.next += 1;
        let members: Vec<Who> = group.members.keys().copied().chain(also).collect();
        for to in members {
            self.put(to, by, place, command, what.clone());
        }
    }

    fn in_group(&mut self, number: u32, act: &Act) -> Word {
        let (by, at) = act.in_group().expect("all others were seen to");
        if self.groups[at].is_dissolved {
            return refuse("group_not_found");
        }
        let Some(&me) = self.groups[at].members.get(&by) else { return refuse("not_in_group") };
        let needs = |role: GroupRole| if me.role >= role { Ok(()) } else { refuse("role_too_low") };
        match *act {
            Act::SayAll { .. } if me.is_muted => refuse("muted"),
            Act::SayAll { .. } => {
                self.post(at, by, SAID, What::Said(number), None);
                Ok(Vec::new())
            }
            Act::Enlist { user, .. } => {
                needs(GroupRole::Admin)?;
                Ok(vec![self.enlist(at, by, user)])
            }
            Act::Expel { user, .. } => {
                needs(GroupRole::Admin)?;
                Ok(vec![self.expel(at, by, me.role, user)])
            }
            Act::Leave { .. } if me.role == GroupRole::Owner => refuse("is_owner"),
            Act::Leave { .. } => {
                self.remove(at, by, by);
                Ok(Vec::new())
            }
            Act::SetRole { user, role, .. } => {
                needs(GroupRole::Owner)?;
                self.set_role(at, by, user, role)
            }
            Act::Mute { user, muted, .. } => {
                needs(GroupRole::Admin)?;
                self.mute(at, by, me.role, user, muted)
            }
            Act::HandOn { user, .. } => {
                needs(GroupRole::Owner)?;
                self.hand_on(at, by, user)
            }
            _ => {
                needs(GroupRole::Owner)?;
                let told = DissolveGroupPush {
                    group_id: self.groups[at].id,
                    opt_id: self.people[by],
                    ..DissolveGroupPush::default()
                };
                self.tell_all(at, by, 123, told.encode_to_vec(), None);
                self.groups[at].is_dissolved = true;
                self.groups[at].members.clear();
                Ok(Vec::new())
            }
        }
    }

    fn enlist(&mut self, at: Where, by: Who, user: Who) -> String {
        if self.groups[at].members.contains_key(&user) {
            return "already_in_group".to_owned();
        }
        if self.tie(user, by).blocks {
            return "blocked".to_owned();
        }
        self.groups[at].members.insert(user, Member { role: GroupRole::Member, is_muted: false });
        let (group_id, opt_id, user_ids) = (self.groups[at].id, self.people[by], vec![self.people[user]]);
        let told = AddGroupMembersPush { group_id, opt_id, user_ids, ..AddGroupMembersPush::default() };
        self.tell_all(at, by, 121, told.encode_to_vec(), None);
        String::new()
    }

    fn expel(&mut self, at: Where, by: Who, rank: GroupRole, user: Who) -> String {
        match self.groups[at].members.get(&user).map(|member| member.role) {
            None => "member_not_found".to_owned(),
            Some(GroupRole::Owner) => "is_owner".to_owned(),
            Some(role) if role >= rank => "role_too_low".to_owned(),
            Some(_) => {
                self.remove(at, by, user);
                String::new()
            }
        }
    }

    fn remove(&mut self, at: Where, by: Who, user: Who) {
        self.groups[at].members.remove(&user);
        let (group_id, opt_id, user_ids) = (self.groups[at].id, self.people[by], vec![self.people[user]]);
        let told = RemoveGroupMembersPush { group_id, opt_id, user_ids, ..RemoveGroupMembersPush::default() };
        self.tell_all(at, by, 122, told.encode_to_vec(), Some(user));
    }

    fn set_role(&mut self, at: Where, by: Who, user: Who, role: GroupRole) -> Word {
        let (group_id, opt_id, user_id) = (self.groups[at].id, self.people[by], self.people[user]);
        let Some(member) = self.groups[at].members.get_mut(&user) else { return refuse("member_not_found") };
        if member.role == GroupRole::Owner {
            return refuse("is_owner");
        }
        if std::mem::replace(&mut member.role, role) != role {
            let role = role.into();
            let told = SetGroupRolePush { group_id, opt_id, user_id, role, ..SetGroupRolePush::default() };
            self.tell_all(at, by, 125, told.encode_to_vec(), None);
        }
        Ok(Vec::new())
    }

    fn mute(&mut self, at: Where, by: Who, rank: GroupRole, user: Who, muted: bool) -> Word {
        let (group_id, opt_id, user_id) = (self.groups[at].id, self.people[by], self.people[user]);
        let Some(member) = self.groups[at].members.get_mut(&user) else { return refuse("member_not_found") };
        if member.role >= rank {
            return refuse("role_too_low");
        }
        if std::mem::replace(&mut member.is_muted, muted) != muted {
            let until_ms = if muted { FOR_EVER_MS } else { 0 };
            let told = MuteGroupPush { group_id, opt_id, user_id, until_ms, ..MuteGroupPush::default() };
            self.tell_all(at, by, 126, told.encode_to_vec(), None);
        }
        Ok(Vec::new())
    }

    fn hand_on(&mut self, at: Where, by: Who, user: Who) -> Word {
        if !self.groups[at].members.contains_key(&user) {
            return refuse("member_not_found");
        }
        if user == by {
            return Ok(Vec::new());
        }
        let (group_id, opt_id, user_id) = (self.groups[at].id, self.people[by], self.people[user]);
        let members = &mut self.groups[at].members;
        members.entry(by).and_modify(|member| member.role = GroupRole::Admin);
        members.insert(user, Member { role: GroupRole::Owner, is_muted: false });
        let told = TransferGroupPush { group_id, opt_id, user_id, ..TransferGroupPush::default() };
        self.tell_all(at, by, 124, told.encode_to_vec(), None);
        Ok(Vec::new())
    }
}

impl Act {
    /// Who acts in which group, if it is in one that there is.
    pub(super) fn in_group(&self) -> Option<(Who, Where)> {
        match *self {
            Self::SayAll { from: by, group }
            | Self::Enlist { by, group, .. }
            | Self::Expel { by, group, .. }
            | Self::Leave { by, group }
            | Self::SetRole { by, group, .. }
            | Self::Mute { by, group, .. }
            | Self::HandOn { by, group, .. }
            | Self::Dissolve { by, group } => Some((by, group)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn town(count: u64) -> Model {
        let mut model = Model::default();
        (0..count).for_each(|number| model.welcome(10_000 + number));
        model
    }

    #[test]
    fn a_blocked_user_is_refused_one_way_and_asks_in_vain_both_ways() {
        let mut model = town(2);
        let none = Made::default();
        let mut attempt = |act| model.attempt(7, &act, none).err();
        assert_eq!(attempt(Act::Block { by: 0, to: 1 }), None);
        assert_eq!(attempt(Act::Say { from: 1, to: 0 }).as_deref(), Some("blocked"));
        assert_eq!(attempt(Act::Say { from: 0, to: 1 }), None);
        assert_eq!(attempt(Act::Ask { by: 0, to: 1 }).as_deref(), Some("blocked"));
        assert_eq!(attempt(Act::Ask { by: 1, to: 0 }).as_deref(), Some("blocked"));
        assert_eq!((model.mailboxes[0].len(), model.mailboxes[1].len(), model.deeds.len()), (0, 1, 1));
    }

    #[test]
    fn own_copies_go_to_the_sender_too_where_the_server_makes_them() {
        let mut model = Model { own_copies: true, ..town(2) };
        model.attempt(3, &Act::Say { from: 0, to: 1 }, Made::default()).expect("nobody blocks");
        assert_eq!(model.mailboxes[0], model.mailboxes[1]);
    }

    #[test]
    fn who_leaves_is_told_so_and_nothing_after_that() {
        let mut model = town(3);
        let made = Made { group: 5, ..Made::default() };
        model.attempt(1, &Act::Found { by: 0, users: vec![1, 2] }, made).expect("a group");
        model.attempt(2, &Act::Leave { by: 2, group: 0 }, made).expect("a member may");
        model.attempt(3, &Act::SayAll { from: 1, group: 0 }, made).expect("a member may");
        let refused = model.attempt(4, &Act::SayAll { from: 2, group: 0 }, made);
        assert_eq!(refused, Err("not_in_group".to_owned()));
        assert_eq!(model.mailboxes.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
        assert_eq!(model.attempt(5, &Act::Leave { by: 0, group: 0 }, made), Err("is_owner".to_owned()));
    }
}
