//! What people do next: seeded, and never two things at once that the order of would matter to.

use std::collections::HashSet;

use gimbal_rpc::v1::{Friendship, GroupRole};

use super::model::{Act, Model, Where, Who};

/// Members beyond whom a group takes nobody new here: above 512 its messages are given out later, to whoever is a member then,
/// which no model outside can know.
pub(super) const MEMBERS_MAX: usize = 500;
/// Members of a group that is made during the day.
const FOUNDED_WITH_MAX: u64 = 12;
/// Attempts at something that nobody is about to touch.
const TRIES: usize = 16;

/// What one act at a time touches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Thing {
    /// What two people are to each other and say to each other; the lesser one first.
    Pair(Who, Who),
    Group(Where),
}

impl Act {
    /// All that it touches.
    pub(super) fn things(&self) -> Vec<Thing> {
        let pair = |one: Who, other: Who| Thing::Pair(one.min(other), one.max(other));
        match *self {
            Self::Say { from, to } => vec![pair(from, to)],
            Self::Ask { by, to }
            | Self::Agree { by, to }
            | Self::Decline { by, to }
            | Self::Unfriend { by, to }
            | Self::Block { by, to }
            | Self::Unblock { by, to } => vec![pair(by, to)],
            Self::Found { by, ref users } => users.iter().map(|&user| pair(by, user)).collect(),
            Self::Enlist { by, group, user } => vec![Thing::Group(group), pair(by, user)],
            Self::SignUp => Vec::new(),
            _ => self.in_group().map(|(_, group)| Thing::Group(group)).into_iter().collect(),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same day for the same seed, as far as answers come in the same order.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to and without `end`, which is above 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of so many.
    pub(super) fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }
}

/// Something that touches nothing in `busy`; `None` when nothing of the kind was found quickly.
pub(super) fn choose(model: &Model, busy: &HashSet<Thing>, rng: &mut Rng) -> Option<Act> {
    (0..TRIES)
        .find_map(|_| one(model, rng).filter(|act| act.things().iter().all(|thing| !busy.contains(thing))))
}

fn one(model: &Model, rng: &mut Rng) -> Option<Act> {
    match rng.below(1000) {
        0..550 => {
            let (from, to) = pair(model, rng);
            Some(Act::Say { from, to })
        }
        550..800 => in_group(model, rng, |from, group, _| Act::SayAll { from, group }),
        800..890 => Some(between(model, rng)),
        890..985 => member(model, rng),
        985..995 => found(model, rng),
        995..997 => in_group(model, rng, |by, group, _| Act::Dissolve { by, group }),
        _ => Some(Act::SignUp),
    }
}

fn pair(model: &Model, rng: &mut Rng) -> (Who, Who) {
    let count = model.people.len();
    let one = rng.index(count);
    (one, (one + 1 + rng.index(count - 1)) % count)
}

/// Mostly between those who have had to do with each other.
fn between(model: &Model, rng: &mut Rng) -> Act {
    let known = (0..4).map(|_| pair(model, rng)).find(|pair| model.ties.contains_key(pair));
    let (by, to) = known.unwrap_or_else(|| pair(model, rng));
    let tie = model.tie(by, to);
    match (rng.below(10), tie.friendship, tie.blocks) {
        (0..6, _, true) => Act::Unblock { by, to },
        (0, ..) => Act::Block { by, to },
        (1..6, Friendship::WasAsked, _) => Act::Agree { by, to },
        (6..8, Friendship::WasAsked, _) => Act::Decline { by, to },
        (5..7, Friendship::Friends | Friendship::Asked, _) => Act::Unfriend { by, to },
        // In vain, as a rule.
        (8, ..) => Act::Agree { by, to },
        (9, ..) => Act::Unfriend { by, to },
        _ => Act::Ask { by, to },
    }
}

/// A group, and somebody who is in it, as a rule, and a person.
fn in_group(model: &Model, rng: &mut Rng, act: impl FnOnce(Who, Where, Who) -> Act) -> Option<Act> {
    if model.groups.is_empty() {
        return None;
    }
    let group = rng.index(model.groups.len());
    let members = &model.groups[group].members;
    let stranger = rng.index(model.people.len());
    let by = match members.len() {
        count if count > 0 && rng.below(20) > 0 => *members.keys().nth(rng.index(count))?,
        _ => stranger,
    };
    let user = match members.len() {
        count if count > 0 && rng.below(2) > 0 => *members.keys().nth(rng.index(count))?,
        _ => stranger,
    };
    // Nothing more is done in most of the groups that are no more.
    (!model.groups[group].is_dissolved || rng.below(10) == 0).then(|| act(by, group, user))
}

/// Members come, go, rise and fall; by somebody who may, as a rule.
fn member(model: &Model, rng: &mut Rng) -> Option<Act> {
    let what = rng.below(12);
    let (is_entitled, is_muted, is_admin) = (rng.below(4) > 0, rng.below(2) > 0, rng.below(2) > 0);
    let act = in_group(model, rng, |by, group, user| {
        let members = &model.groups[group].members;
        let owner = members.iter().find(|(_, member)| member.role == GroupRole::Owner);
        let by = owner.filter(|_| is_entitled && what != 4).map_or(by, |(owner, _)| *owner);
        let role = if is_admin { GroupRole::Admin } else { GroupRole::Member };
        match what {
            0..4 => Act::Enlist { by, group, user },
            4 => Act::Leave { by, group },
            5..7 => Act::Expel { by, group, user },
            7..9 => Act::SetRole { by, group, user, role },
            9..11 => Act::Mute { by, group, user, muted: is_muted },
            _ => Act::HandOn { by, group, user },
        }
    });
    act.filter(|act| match *act {
        Act::Enlist { by, group, user } => by != user && model.groups[group].members.len() < MEMBERS_MAX,
        _ => true,
    })
}

fn found(model: &Model, rng: &mut Rng) -> Option<Act> {
    let size = 1 + rng.below(FOUNDED_WITH_MAX) as usize;
    Some(found_with(model, rng, size))
}

/// A group of somebody with so many others, or as many as there are.
pub(super) fn found_with(model: &Model, rng: &mut Rng, others: usize) -> Act {
    let count = model.people.len();
    let by = rng.index(count);
    let others = others.min(count - 1).min(MEMBERS_MAX - 1);
    let first = rng.index(count - 1);
    let users = (0..others).map(|at| (by + 1 + (first + at) % (count - 1)) % count).collect();
    Act::Found { by, users }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::social::model::Made;

    #[test]
    fn a_day_is_full_of_everything_and_disturbs_nothing_that_is_under_way() {
        let (mut model, mut rng) = (Model::default(), Rng::new(7));
        (0..30).for_each(|number| model.welcome(10_000 + number));
        let mut busy = HashSet::new();
        let (mut kinds, mut refused, mut done) = (HashSet::new(), 0, 0);
        for number in 1..20_000 {
            let Some(act) = choose(&model, &busy, &mut rng) else { continue };
            let things = act.things();
            assert!(things.iter().all(|thing| !busy.contains(thing)));
            kinds.insert(std::mem::discriminant(&act));
            let made = Made { user: 20_000 + u64::from(number), group: u64::from(number) };
            match model.attempt(number, &act, made) {
                Ok(_) => done += 1,
                Err(_) => refused += 1,
            }
            // Some of it stays under way for a while.
            if number % 3 == 0 {
                busy.extend(things);
            }
            if number % 60 == 0 {
                busy.clear();
            }
        }
        assert_eq!(kinds.len(), 17, "every kind of act");
        assert!(done > 5 * refused && refused > 100, "{done} done, {refused} refused");
        assert!(model.groups.iter().all(|group| group.members.len() <= MEMBERS_MAX));
    }
}
