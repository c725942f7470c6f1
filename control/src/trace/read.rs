//! The story of one message: what the ring holds of it, beside what the store knows of mailboxes, devices and acks.

use std::collections::BTreeMap;
use std::sync::Arc;

use gimbal_codec::{DeviceId, GatewayId, MessageId, Seq, SessionKey, UserId, limits};
use gimbal_rpc::link::Body;

use super::{Record, Trace};
use crate::error::RequestError;
use crate::mailbox;
use crate::social::read::devices;
use crate::store::View;

/// Messages of a mailbox that are searched for one that the ring does not hold, from its end.
pub const SEARCHED_MAX: u64 = 10_000;
/// Contents that such a search reads, about; it ends there.
const SEARCHED_BYTES_MAX: usize = 32 << 20;
/// Contents in one page of it.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The message.
    pub message: MessageId,
    /// In this mailbox only, which is searched when the ring holds nothing.
    pub user: Option<UserId>,
    /// Of users after this one.
    pub after: UserId,
    /// Most mailboxes told of.
    pub limit: usize,
}

/// What is known.
#[derive(Clone, PartialEq, Debug)]
pub struct Story {
    /// The message, if a mailbox told of still has it.
    pub body: Option<Arc<Body>>,
    /// By rising user.
    pub mailboxes: Vec<InMailbox>,
    /// Mailboxes that it was given to, as far as the ring goes back.
    pub mailbox_count: usize,
    /// More follow after this user.
    pub next: Option<UserId>,
    /// All that was released since then is known, Unix milliseconds; 0: nothing is.
    pub since_ms: i64,
}

/// A message in one mailbox.
#[derive(Clone, PartialEq, Debug)]
pub struct InMailbox {
    /// Whose.
    pub user: UserId,
    /// Its place.
    pub seq: Seq,
    /// When it was released after its commit, Unix milliseconds; 0: the ring does not hold it.
    pub released_ms: i64,
    /// The mailbox has it no more.
    pub is_trimmed: bool,
    /// All of the user's.
    pub devices: Vec<OnDevice>,
}

/// A message on its way to one device. Times are Unix milliseconds; 0: not known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OnDevice {
    /// Which.
    pub device: DeviceId,
    /// Handed to gateways.
    pub pushes: Vec<Push>,
    /// When the device was first answered a page that holds it.
    pub answered_ms: i64,
    /// When the device first asked for what comes after it.
    pub passed_ms: i64,
    /// When its ack first covered it.
    pub acked_ms: i64,
    /// Its ack covers it now.
    pub is_acked: bool,
}

/// Handed to the gateway of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Push {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// Which gateway.
    pub gateway: GatewayId,
    /// Its slot there.
    pub session: SessionKey,
    /// The way to the gateway was full or broken.
    pub lost: bool,
}

/// The furthest that is known of a message on its way to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The device acknowledged it.
    Acked,
    /// The device asked for what comes after it.
    Passed,
    /// A page that holds it was handed to the device's gateway, or answered to its call.
    Answered,
    /// It was handed to the session's gateway, which gives it out unless the session is behind, or gone by then.
    Pushed,
    /// The way to the gateway was full; the device gets it by a sync.
    LinkFull,
    /// The device was not online, and has not asked since.
    NotOnline,
    /// It is older than what the ring holds, and not acknowledged.
    NotKnown,
}

impl Outcome {
    /// Stable text.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Passed => "passed",
            Self::Answered => "answered",
            Self::Pushed => "pushed",
            Self::LinkFull => "link_full",
            Self::NotOnline => "not_online",
            Self::NotKnown => "not_known",
        }
    }
}

impl OnDevice {
    /// What it came to, if the ring goes back to the message's release (`is_recent`) or does not.
    pub fn outcome(&self, is_recent: bool) -> Outcome {
        if self.is_acked {
            Outcome::Acked
        } else if self.passed_ms > 0 {
            Outcome::Passed
        } else if self.answered_ms > 0 {
            Outcome::Answered
        } else if self.pushes.iter().any(|push| !push.lost) {
            Outcome::Pushed
        } else if !self.pushes.is_empty() {
            Outcome::LinkFull
        } else if is_recent {
            Outcome::NotOnline
        } else {
            Outcome::NotKnown
        }
    }
}

/// All that is known of a message.
///
/// # Errors
/// [`RequestError::NotTraced`] when that is nothing, [`RequestError::UserNotFound`] for a user that there is not, a store
/// error.
pub fn story(trace: &Trace, view: &dyn View, ask: &Ask) -> Result<Story, RequestError> {
    let (mut found, mailbox_count) = released(trace, ask);
    if let Some(user) = ask.user
        && found.is_empty()
        && let Some(seq) = search(view, user, ask.message)?
    {
        found.push(InMailbox { user, seq, released_ms: 0, is_trimmed: false, devices: Vec::new() });
    }
    if mailbox_count == 0 && found.is_empty() {
        return Err(RequestError::NotTraced);
    }
    let next = (found.len() > ask.limit).then(|| found[ask.limit - 1].user);
    found.truncate(ask.limit);
    follow(trace, &mut found);
    let mut body = None;
    for mailbox in &mut found {
        complete(view, mailbox)?;
        if body.is_none() && !mailbox.is_trimmed {
            body = stored(view, mailbox.user, mailbox.seq, ask.message)?;
        }
    }
    let since_ms = trace.since_ms().unwrap_or(0);
    Ok(Story { body, mailboxes: found, mailbox_count, next, since_ms })
}

/// Where the ring has seen the message released: those of whom is asked, one more than wanted, and how many there are.
fn released(trace: &Trace, ask: &Ask) -> (Vec<InMailbox>, usize) {
    let mut wanted: BTreeMap<UserId, InMailbox> = BTreeMap::new();
    let (mut count, mut last) = (0, None);
    trace.scan(|record| {
        let (user, seq, at_ms) = match *record {
            Record::Pushed { message, user, seq, at_ms, .. }
            | Record::Offline { message, user, seq, at_ms }
                if message == ask.message =>
            {
                (user, seq, at_ms)
            }
            _ => return,
        };
        // Records of one mailbox follow each other.
        count += usize::from(last.replace(user) != Some(user));
        if user <= ask.after || ask.user.is_some_and(|asked| asked != user) {
            return;
        }
        let devices = Vec::new();
        let new = || InMailbox { user, seq, released_ms: at_ms, is_trimmed: false, devices };
        let mailbox = wanted.entry(user).or_insert_with(new);
        if let Record::Pushed { device, session, gateway, lost, .. } = *record {
            mailbox.device(device).pushes.push(Push { at_ms, gateway, session, lost });
        }
        if wanted.len() > ask.limit + 1 {
            wanted.pop_last();
        }
    });
    (wanted.into_values().collect(), count)
}

impl InMailbox {
    fn device(&mut self, device: DeviceId) -> &mut OnDevice {
        let at = self.devices.iter().position(|known| known.device == device).unwrap_or_else(|| {
            self.devices.push(OnDevice { device, ..OnDevice::default() });
            self.devices.len() - 1
        });
        &mut self.devices[at]
    }
}

/// Pages and acks that cover the message. Of one that is older than the ring the first of them may be forgotten, and is
/// not told.
fn follow(trace: &Trace, found: &mut [InMailbox]) {
    trace.scan(|record| {
        let user = match record {
            Record::Paged { user, .. } | Record::Acked { user, .. } => *user,
            Record::Pushed { .. } | Record::Offline { .. } => return,
        };
        let Ok(at) = found.binary_search_by_key(&user, |mailbox| mailbox.user) else { return };
        let mailbox = &mut found[at];
        let (sought, is_recent) = (mailbox.seq, mailbox.released_ms > 0);
        match *record {
            Record::Paged { device, after, end, at_ms, .. } if after < sought && sought <= end => {
                first(&mut mailbox.device(device).answered_ms, at_ms);
            }
            Record::Paged { device, after, at_ms, .. } if after >= sought => {
                first(&mut mailbox.device(device).passed_ms, at_ms);
            }
            Record::Acked { device, seq, at_ms, .. } if seq >= sought => {
                let on_device = mailbox.device(device);
                on_device.is_acked = true;
                if is_recent {
                    first(&mut on_device.acked_ms, at_ms);
                }
            }
            _ => {}
        }
    });
}

fn first(known_ms: &mut i64, at_ms: i64) {
    if *known_ms == 0 {
        *known_ms = at_ms;
    }
}

/// Adds what the store knows: all devices and their acks, and whether the mailbox has it still.
fn complete(view: &dyn View, mailbox: &mut InMailbox) -> Result<(), RequestError> {
    let head = mailbox::head(view, mailbox.user)?;
    mailbox.is_trimmed = head.is_none_or(|head| head.trimmed_to >= mailbox.seq);
    for page in devices(view, mailbox.user)? {
        let is_acked = page.acked >= mailbox.seq;
        mailbox.device(page.device).is_acked |= is_acked;
    }
    mailbox.devices.sort_unstable_by_key(|device| device.device);
    Ok(())
}

fn stored(
    view: &dyn View,
    user: UserId,
    seq: Seq,
    message: MessageId,
) -> Result<Option<Arc<Body>>, RequestError> {
    let before = Seq::new(seq.get().saturating_sub(1));
    let page = mailbox::page(view, user, before, 1, PAGE_BYTES_MAX)?;
    let found = page.entries.into_iter().find(|(at, body)| *at == seq && body.message_id == message);
    Ok(found.map(|(_, body)| body))
}

/// The place of a message among the newest of a mailbox.
fn search(view: &dyn View, user: UserId, message: MessageId) -> Result<Option<Seq>, RequestError> {
    let head = mailbox::head(view, user)?.ok_or(RequestError::UserNotFound)?;
    let latest = head.latest().get();
    let oldest = head.trimmed_to.get().max(latest.saturating_sub(SEARCHED_MAX));
    let step = u64::from(limits::SYNC_LIMIT_MAX);
    let (mut end, mut bytes) = (latest, 0);
    while end > oldest && bytes < SEARCHED_BYTES_MAX {
        let begin = end.saturating_sub(step).max(oldest);
        let mut at = Seq::new(begin);
        while at.get() < end {
            let page = mailbox::page(view, user, at, limits::SYNC_LIMIT_MAX, PAGE_BYTES_MAX)?;
            if let Some((seq, _)) = page.entries.iter().find(|(_, body)| body.message_id == message) {
                return Ok(Some(*seq));
            }
            bytes += page.entries.iter().map(|(_, body)| body.content.len()).sum::<usize>();
            at = page.end;
        }
        end = begin;
    }
    Ok(None)
}
