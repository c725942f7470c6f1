//! The end: what the server has, read over gRPC, against the model.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use gimbal_rpc::v1::{self, EventAct, EventKind, Friendship, GroupRole};
use tokio::task::JoinSet;

use super::{
    device::Device,
    model::{Entry, Model, What, Who},
};
use crate::{
    grpc::{Api, Credential, explain},
    ledger::Mark,
    report::Counts,
};

/// People read at once.
const READING_MAX: usize = 8;
/// Messages asked for at a time, and entries of lists.
const PAGE: u32 = 500;
const LIST_PAGE: u32 = 200;
/// Users of one stream of events, at most.
const TAIL_USERS: usize = 1_000;

/// What the server has of a person.
#[derive(Default)]
pub(super) struct Found {
    /// By seq.
    pub(super) messages: Vec<v1::Message>,
    friends: BTreeMap<u64, Friendship>,
    blocked: BTreeSet<u64>,
    groups: BTreeMap<u64, GroupRole>,
    /// By device.
    acked: BTreeMap<u64, u64>,
}

/// What is wrong, counted and in words.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) counts: Counts,
    pub(super) faults: Vec<String>,
    /// Messages found in mailboxes.
    pub(super) stored: u64,
    /// Events that agree.
    pub(super) events: u64,
    /// Messages whose trace agrees.
    pub(super) traced: u64,
}

impl Verdict {
    fn wrong(&mut self, words: String) {
        self.counts.wrong += 1;
        self.faults.push(words);
    }
}

/// Reads everything of everybody.
///
/// # Errors
/// At the first refused page.
pub(super) async fn read_all(api: &Api, people: &[std::sync::Arc<Device>]) -> Result<Vec<Found>> {
    let mut found: Vec<Found> = people.iter().map(|_| Found::default()).collect();
    let (mut tasks, mut next) = (JoinSet::new(), 0);
    while next < people.len() || !tasks.is_empty() {
        while next < people.len() && tasks.len() < READING_MAX {
            let (api, device, index) = (api.clone(), std::sync::Arc::clone(&people[next]), next);
            tasks.spawn(async move { (index, read(&api, &device).await) });
            next += 1;
        }
        if let Some(done) = tasks.join_next().await {
            let (index, read) = done.context("a reading task ended badly")?;
            found[index] = read?;
        }
    }
    Ok(found)
}

async fn read(api: &Api, device: &Device) -> Result<Found> {
    let credential = Credential::device(device.user, device.device, &device.token)?;
    let mut found = Found { messages: mailbox(api, &credential).await?, ..Found::default() };
    let mut friends = api.friends(credential.clone());
    for friendship in [Friendship::Friends, Friendship::Asked, Friendship::WasAsked] {
        let mut page_token = String::new();
        loop {
            let request =
                v1::ListFriendsRequest { friendship: friendship.into(), page_size: LIST_PAGE, page_token };
            let page =
                friends.list(request).await.map_err(|status| explain("list friends", &status))?.into_inner();
            let users = page.friends.iter().flat_map(|friend| &friend.user);
            found.friends.extend(users.map(|user| (user.user_id, friendship)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    let mut page_token = String::new();
    loop {
        let request = v1::ListBlockedRequest { page_size: LIST_PAGE, page_token };
        let page = friends.list_blocked(request).await.map_err(|status| explain("list blocked", &status))?;
        let page = page.into_inner();
        found.blocked.extend(page.users.iter().map(|user| user.user_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.groups = groups(api, &credential).await?;
    let devices = api.accounts(credential).list_devices(v1::ListDevicesRequest {}).await;
    let devices = devices.map_err(|status| explain("list devices", &status))?.into_inner().devices;
    let acked = |owned: v1::OwnedDevice| (owned.device.unwrap_or_default().id, owned.acked_seq);
    found.acked = devices.into_iter().map(acked).collect();
    Ok(found)
}

async fn mailbox(api: &Api, credential: &Credential) -> Result<Vec<v1::Message>> {
    let (mut messages, mut all) = (api.messages(credential.clone()), Vec::<v1::Message>::new());
    loop {
        let after = all.last().map_or(0, |message| message.seq);
        let page = messages.sync(v1::SyncRequest { after, limit: PAGE }).await;
        let page = page.map_err(|status| explain("sync", &status))?.into_inner();
        let is_last = !page.has_more || page.messages.is_empty();
        all.extend(page.messages);
        if is_last {
            return Ok(all);
        }
    }
}

async fn groups(api: &Api, credential: &Credential) -> Result<BTreeMap<u64, GroupRole>> {
    let (mut groups, mut found, mut page_token) =
        (api.groups(credential.clone()), BTreeMap::new(), String::new());
    loop {
        let request = v1::ListMineRequest { page_size: LIST_PAGE, page_token };
        let page = groups.list_mine(request).await.map_err(|status| explain("list groups", &status))?;
        let page = page.into_inner();
        let of = |group: v1::GetGroupReply| {
            (group.group.unwrap_or_default().group_id, group.me.unwrap_or_default().role())
        };
        found.extend(page.groups.into_iter().map(of));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}

/// A message as the model has it.
fn entry(run: u64, message: &v1::Message) -> Entry {
    let mark =
        Mark::read(&message.content).filter(|mark| mark.run == run && message.command == super::model::SAID);
    let what = match mark {
        Some(mark) => What::Said(mark.number),
        None => What::Told(message.content.to_vec().into()),
    };
    let place = (message.group_id, message.group_seq);
    Entry { from: message.from_user, place, command: message.command, what }
}

/// Whose word an entry is: what comes from one source has an order.
fn source(model: &Model, of: Who, entry: &Entry) -> (u64, u64) {
    let other = |number| model.said.get(number).map(|&(from, to)| if from == of { to } else { from });
    match &entry.what {
        _ if entry.place.0 > 0 => (0, entry.place.0),
        What::Said(number) => (other(number).map_or(entry.from, |other| model.people[other]), 0),
        What::Told(_) => (entry.from, 0),
    }
}

/// Enters how one mailbox differs from the model's.
pub(super) fn judge_mailbox(
    run: u64,
    model: &Model,
    who: Who,
    messages: &[v1::Message],
    verdict: &mut Verdict,
) {
    verdict.stored += messages.len() as u64;
    let user = model.people[who];
    for (message, seq) in messages.iter().zip(1..) {
        if message.seq != seq {
            verdict.counts.gaps += 1;
            verdict.faults.push(format!("user {user}: seq {} where {seq} was due", message.seq));
        }
    }
    let by_source = |entries: Vec<Entry>| {
        let mut orders: BTreeMap<(u64, u64), Vec<Entry>> = BTreeMap::new();
        entries
            .into_iter()
            .for_each(|entry| orders.entry(source(model, who, &entry)).or_default().push(entry));
        orders
    };
    let stored = by_source(messages.iter().map(|message| entry(run, message)).collect());
    let expected = by_source(model.mailboxes[who].clone());
    let sources: BTreeSet<_> = stored.keys().chain(expected.keys()).collect();
    for source in sources {
        let none = Vec::new();
        let (stored, expected) = (stored.get(source).unwrap_or(&none), expected.get(source).unwrap_or(&none));
        if stored != expected {
            differ(user, stored, expected, verdict);
        }
    }
}

fn differ(user: u64, stored: &[Entry], expected: &[Entry], verdict: &mut Verdict) {
    let mut count: HashMap<&Entry, (i64, i64)> = HashMap::new();
    stored.iter().for_each(|entry| count.entry(entry).or_default().0 += 1);
    expected.iter().for_each(|entry| count.entry(entry).or_default().1 += 1);
    let mut is_same = true;
    for (entry, (stored, expected)) in count {
        let spoiled = match (stored, expected) {
            (one, other) if one == other => continue,
            (stored, expected) if stored < expected => &mut verdict.counts.lost,
            (_, 0) => &mut verdict.counts.wrong,
            _ => &mut verdict.counts.duplicated,
        };
        *spoiled += stored.abs_diff(expected);
        is_same = false;
        verdict.faults.push(format!("user {user} has {stored} in place of {expected} of {entry:?}"));
    }
    if is_same {
        verdict.counts.reordered += 1;
        verdict.faults.push(format!("user {user} has {stored:?} in place of {expected:?}"));
    }
}

/// Enters how what the server knows of a person differs from the model: friends, blocks, groups, and what its devices were
/// given and have acknowledged.
pub(super) fn judge_person(
    model: &Model,
    who: Who,
    found: &Found,
    devices: &[std::sync::Arc<Device>],
    verdict: &mut Verdict,
) {
    let user = model.people[who];
    let mine = model.ties.iter().filter(|((of, _), _)| *of == who);
    let (mut friends, mut blocked) = (BTreeMap::new(), BTreeSet::new());
    for ((_, other), tie) in mine {
        if tie.friendship != Friendship::Unspecified {
            friends.insert(model.people[*other], tie.friendship);
        }
        if tie.blocks {
            blocked.insert(model.people[*other]);
        }
    }
    if found.friends != friends {
        verdict.wrong(format!("user {user} has friends {:?} in place of {friends:?}", found.friends));
    }
    if found.blocked != blocked {
        verdict.wrong(format!("user {user} blocks {:?} in place of {blocked:?}", found.blocked));
    }
    let of = |group: &super::model::Group| Some((group.id, group.members.get(&who)?.role));
    let groups: BTreeMap<u64, GroupRole> = model.groups.iter().filter_map(of).collect();
    if found.groups != groups {
        verdict.wrong(format!("user {user} is in {:?} in place of {groups:?}", found.groups));
    }
    let ids: Vec<u64> = found.messages.iter().map(|message| message.message_id).collect();
    for device in devices {
        if device.received() != ids {
            verdict.counts.reordered += 1;
            verdict.faults.push(format!("device {} was given other than its mailbox", device.device));
        }
        let acked = found.acked.get(&device.device).copied().unwrap_or_default();
        if acked != ids.len() as u64 {
            verdict.wrong(format!("device {} has acknowledged {acked} of {}", device.device, ids.len()));
        }
    }
}

/// Enters how the members of the groups differ from the model.
///
/// # Errors
/// At the first refused page.
pub(super) async fn judge_groups(
    api: &Api,
    backend: &Credential,
    model: &Model,
    verdict: &mut Verdict,
) -> Result<()> {
    let mut groups = api.groups(backend.clone());
    for group in model.groups.iter().filter(|group| !group.is_dissolved) {
        let (mut found, mut page_token) = (BTreeMap::new(), String::new());
        loop {
            let request = v1::ListMembersRequest { group_id: group.id, page_size: LIST_PAGE, page_token };
            let page =
                groups.list_members(request).await.map_err(|status| explain("list members", &status))?;
            let page = page.into_inner();
            let of = |member: &v1::GroupMember| (member.user_id, (member.role(), member.muted_until_ms > 0));
            found.extend(page.members.iter().map(of));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let of = |(who, member): (&Who, &super::model::Member)| {
            (model.people[*who], (member.role, member.is_muted))
        };
        let expected: BTreeMap<u64, (GroupRole, bool)> = group.members.iter().map(of).collect();
        if found != expected {
            verdict.wrong(format!("group {} has {found:?} in place of {expected:?}", group.id));
        }
    }
    Ok(())
}

/// Enters how the event stream differs: it tells of each message in each mailbox once, and of each deed.
///
/// # Errors
/// When the stream is refused or breaks.
pub(super) async fn judge_events(
    api: &Api,
    backend: &Credential,
    model: &Model,
    found: &[Found],
    verdict: &mut Verdict,
) -> Result<()> {
    let mut messages: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
    let mut deeds: HashMap<(u64, u64), Vec<(u64, EventAct)>> = HashMap::new();
    for users in model.people.chunks(TAIL_USERS) {
        let request = v1::TailRequest {
            kinds: vec![EventKind::Message.into(), EventKind::Friend.into()],
            user_ids: users.to_vec(),
            until_now: true,
            ..v1::TailRequest::default()
        };
        let stream = api.events(backend.clone()).tail(request).await;
        let mut stream = stream.map_err(|status| explain("events", &status))?.into_inner();
        while let Some(event) = stream.message().await.map_err(|status| explain("events", &status))? {
            match event.kind() {
                EventKind::Message => {
                    messages.entry(event.user_id).or_default().push((event.seq, event.message_id));
                }
                EventKind::Friend => {
                    let (by, to) = (event.user_id, event.other_user_id);
                    deeds.entry((by.min(to), by.max(to))).or_default().push((by, event.act()));
                }
                _ => {}
            }
            verdict.events += 1;
        }
    }
    for (found, user) in found.iter().zip(&model.people) {
        let stored: Vec<(u64, u64)> =
            found.messages.iter().map(|message| (message.seq, message.message_id)).collect();
        if messages.remove(user).unwrap_or_default() != stored {
            verdict.wrong(format!("the events of messages to user {user} are not its mailbox"));
        }
    }
    let mut expected: HashMap<(u64, u64), Vec<(u64, EventAct)>> = HashMap::new();
    for &(by, act, to) in &model.deeds {
        let (by, to) = (model.people[by], model.people[to]);
        expected.entry((by.min(to), by.max(to))).or_default().push((by, act));
    }
    for (pair, expected) in &expected {
        let told = deeds.remove(pair).unwrap_or_default();
        if told != *expected {
            verdict.wrong(format!("between {pair:?} the events tell {told:?} in place of {expected:?}"));
        }
    }
    if !deeds.is_empty() {
        verdict.wrong(format!("the events tell of what was not: {deeds:?}"));
    }
    Ok(())
}

/// Enters how the traces of some messages differ from where they are.
///
/// # Errors
/// When a trace is refused.
pub(super) async fn judge_traces(
    api: &Api,
    admin: &Credential,
    found: &[Found],
    model: &Model,
    verdict: &mut Verdict,
) -> Result<()> {
    for (found, &user_id) in found.iter().zip(&model.people) {
        let Some(message) = found.messages.last() else { continue };
        let request = v1::TraceRequest { message_id: message.message_id, user_id, ..Default::default() };
        let story = api.admin(admin.clone()).trace(request).await;
        let story = story.map_err(|status| explain("trace", &status))?.into_inner();
        let mailbox = story.mailboxes.first().cloned().unwrap_or_default();
        let is_acked =
            !mailbox.devices.is_empty() && mailbox.devices.iter().all(|device| device.outcome == "acked");
        if mailbox.seq != message.seq || story.from_user != message.from_user || !is_acked {
            verdict.wrong(format!("the trace of {} is {story:?}", message.message_id));
        }
        verdict.traced += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::social::model::{Act, Made, SAID};

    const RUN: u64 = 5;

    fn said(seq: u64, number: u32) -> v1::Message {
        let mut content = Vec::new();
        Mark { run: RUN, sender: 0, number, intended_ns: 1 }.write(30, &mut content);
        v1::Message { seq, from_user: 10_000, command: SAID, content: content.into(), ..Default::default() }
    }

    fn model() -> Model {
        let mut model = Model::default();
        (0..2).for_each(|number| model.welcome(10_000 + number));
        for number in 1..4 {
            model.attempt(number, &Act::Say { from: 0, to: 1 }, Made::default()).expect("nobody blocks");
        }
        model
    }

    fn judged(messages: &[v1::Message]) -> Counts {
        let mut verdict = Verdict::default();
        judge_mailbox(RUN, &model(), 1, messages, &mut verdict);
        assert_eq!(verdict.counts.is_clean(), verdict.faults.is_empty());
        verdict.counts
    }

    #[test]
    fn each_way_in_which_a_mailbox_can_be_wrong_spoils_its_count() {
        let good = [said(1, 1), said(2, 2), said(3, 3)];
        assert!(judged(&good).is_clean());
        assert_eq!(judged(&good[..2]).lost, 1);
        assert_eq!(judged(&[said(1, 1), said(2, 2), said(4, 3)]).gaps, 1);
        assert_eq!(judged(&[said(1, 2), said(2, 1), said(3, 3)]).reordered, 1);
        assert_eq!(judged(&[&good[..], &[said(4, 3)]].concat()).duplicated, 1);
        assert_eq!(judged(&[&good[..], &[said(4, 9)]].concat()).wrong, 1);
    }
}
