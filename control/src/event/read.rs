//! Pages of the event stream, on a view that stands still.

use bytes::Bytes;
use gimbal_codec::Seq;

use super::place;
use crate::error::RequestError;
use crate::mailbox;
use crate::social::read::{DevicePage, devices};
use crate::store::key::{self, Meta};
use crate::store::value::{CorruptValue, EventKind, EventRecord, MetaNumber, Value as _};
use crate::store::{Scan, StoreError, Table, View};

/// Events that one page looks at.
pub const PAGE_LOOKS_MAX: usize = 512;

/// Which events are wanted. An empty list is all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Of these kinds.
    pub kinds: Vec<EventKind>,
    /// Of these users.
    pub users: Vec<u64>,
    /// With the contents of messages.
    pub contents: bool,
}

impl Filter {
    fn wants(&self, event: &EventRecord) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.users.is_empty() || self.users.contains(&event.user.get()))
    }
}

/// An event and what was looked up for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Its number.
    pub number: u64,
    /// What happened.
    pub event: EventRecord,
    /// Of the message; `None` when it is not wanted or not there any more.
    pub content: Option<Bytes>,
    /// Devices with a push token, of [`EventKind::OfflineMessage`].
    pub devices: Vec<DevicePage>,
}

/// Some events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPage {
    /// Those that are wanted.
    pub events: Vec<Shown>,
    /// The last number looked at; `None` when there is none after the one asked for.
    pub last: Option<u64>,
}

/// The last event that is there no more.
///
/// # Errors
/// A store error.
pub fn floor(view: &dyn View) -> Result<u64, StoreError> {
    let stored = view.get(Table::Meta, &Meta::EventFloor.key())?;
    let number = stored.map(|bytes| MetaNumber::from_bytes(&bytes)).transpose()?;
    Ok(number.map_or(0, |number| number.value))
}

/// Events after the number `after`.
///
/// # Errors
/// [`RequestError::TooOld`] when some after it have been trimmed, unless it is 0; a store error.
pub fn page(view: &dyn View, after: u64, filter: &Filter) -> Result<EventPage, RequestError> {
    if after != 0 && after < floor(view)? {
        return Err(RequestError::TooOld);
    }
    let mut page = EventPage { events: Vec::new(), last: None };
    scan(view, after, PAGE_LOOKS_MAX, |number, event| {
        page.last = Some(number);
        if filter.wants(&event) {
            page.events.push(Shown { number, event, content: None, devices: Vec::new() });
        }
    })?;
    for shown in &mut page.events {
        if filter.contents
            && let Some((user, seq, message)) = place(&shown.event)
        {
            let found = mailbox::page(view, user, Seq::new(seq.get().saturating_sub(1)), 1, usize::MAX)?;
            let body = found.entries.into_iter().find(|(_, body)| body.message_id == message);
            shown.content = body.map(|(_, body)| body.content.clone());
        }
        if shown.event.kind == EventKind::OfflineMessage {
            shown.devices = devices(view, shown.event.user)?;
            shown.devices.retain(|device| !device.record.info.push_token.is_empty());
        }
    }
    Ok(page)
}

/// Shows at most `limit` events after the number `after`.
///
/// # Errors
/// A store error.
pub fn scan(
    view: &dyn View,
    after: u64,
    limit: usize,
    mut show: impl FnMut(u64, EventRecord),
) -> Result<(), StoreError> {
    let (from, to) = (key::event(after.saturating_add(1)), key::event(u64::MAX));
    let mut count = 0;
    view.scan(Table::Event, &from, &to, &mut |at, value| {
        let number = at.last_chunk().ok_or(CorruptValue { what: "event", why: "foreign key", at: 0 })?;
        show(u64::from_be_bytes(*number), EventRecord::from_bytes(value)?);
        count += 1;
        Ok(if count < limit { Scan::Continue } else { Scan::Stop })
    })
}
