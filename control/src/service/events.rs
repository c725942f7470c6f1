//! The event stream.

use std::pin::Pin;

use futures_util::StreamExt as _;
use gimbal_codec::epoch_number;
use gimbal_rpc::v1::{self, events_server::Events};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Services, bad};
use crate::{
    api_key::Scope,
    error::RequestError,
    event::read::{self, EventPage, Filter, Shown},
    front::raised,
    store::{Store, value::EventKind},
};

/// Users of one filter.
const USERS_MAX: usize = 1000;
/// Events without a wanted one among them after which the consumer gets a cursor to keep.
const POSITION_AFTER: u64 = 10_000;

/// Where a consumer stands.
struct Tail {
    services: Services,
    filter: Filter,
    after: u64,
    /// Looked at since the consumer was given a cursor.
    unseen: u64,
    until_now: bool,
    newest: watch::Receiver<u64>,
}

impl Tail {
    /// The next events, or none when the stream is over.
    async fn next(&mut self) -> Result<Option<Vec<v1::Event>>, RequestError> {
        loop {
            // Before the look: what comes after it wakes the wait.
            self.newest.mark_unchanged();
            let (after, filter) = (self.after, self.filter.clone());
            let look = move |store: &dyn Store| read::page(&*store.snapshot(), after, &filter);
            let EventPage { events, last } = self.services.plane.readers().call(look).await?;
            let Some(last) = last else {
                if self.until_now || self.newest.changed().await.is_err() {
                    return Ok(None);
                }
                continue;
            };
            self.after = last;
            self.unseen += read::PAGE_LOOKS_MAX as u64;
            let mut told: Vec<v1::Event> = events.into_iter().map(event).collect();
            if told.is_empty() && self.unseen >= POSITION_AFTER {
                told.push(v1::Event { cursor: cursor(last), ..Default::default() });
            }
            if !told.is_empty() {
                self.unseen = 0;
                return Ok(Some(told));
            }
        }
    }
}

#[tonic::async_trait]
impl Events for Services {
    type TailStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        self.may(Scope::Events, request.metadata())?;
        let v1::TailRequest { cursor, from_now, kinds, user_ids, with_content, until_now } =
            request.into_inner();
        if user_ids.len() > USERS_MAX {
            return Err(bad("user_ids", "must be at most 1,000 users").into());
        }
        let kinds = kinds.into_iter().map(kind).collect::<Option<Vec<_>>>();
        let kinds = kinds.ok_or_else(|| bad("kinds", "must be known ones"))?;
        let newest = self.plane.writer().news().newest.subscribe();
        let now = if from_now { self.newest_event(*newest.borrow()) } else { 0 };
        let after = if cursor.is_empty() {
            now
        } else {
            number(&cursor, epoch_number(self.plane.writer().store().control_epoch() + 1, 0))?
        };
        let filter = Filter { kinds, users: user_ids, contents: with_content };
        let tail = Tail { services: self.clone(), filter, after, unseen: 0, until_now, newest };
        // What is wrong with the cursor is said before anything is sent.
        let (at, none) = (tail.after, Filter::default());
        self.plane.readers().call(move |store| read::page(&*store.snapshot(), at, &none)).await?;
        let pages = futures_util::stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(Some(events)) => Some((events.into_iter().map(Ok).collect::<Vec<_>>(), Some(tail))),
                Ok(None) => None,
                Err(error) => Some((vec![Err(Status::from(error))], None)),
            }
        });
        let events = pages.flat_map(futures_util::stream::iter).take_until(raised(self.stop.clone()));
        Ok(Response::new(Box::pin(events)))
    }
}

impl Services {
    /// The newest event, or the end of all earlier lives.
    fn newest_event(&self, of_this_life: u64) -> u64 {
        of_this_life.max(epoch_number(self.plane.writer().store().control_epoch(), 0))
    }
}

fn cursor(number: u64) -> String {
    format!("{number:016x}")
}

/// `beyond`: the least number of a later life of control.
fn number(cursor: &str, beyond: u64) -> Result<u64, RequestError> {
    let number = (cursor.len() == 16).then(|| u64::from_str_radix(cursor, 16).ok()).flatten();
    let number = number.filter(|number| (1..beyond).contains(number));
    number.ok_or_else(|| bad("cursor", "must be an event's cursor"))
}

fn kind(number: i32) -> Option<EventKind> {
    EventKind::ALL.into_iter().find(|kind| i32::from(*kind as u8) == number)
}

fn event(shown: Shown) -> v1::Event {
    let Shown { number, event, content, devices } = shown;
    v1::Event {
        cursor: cursor(number),
        kind: i32::from(event.kind as u8),
        at_ms: event.at_ms,
        user_id: event.user.get(),
        device_id: event.device.get(),
        other_user_id: event.other.get(),
        message_id: event.message.get(),
        seq: event.seq.get(),
        command: event.command,
        content: content.unwrap_or_default(),
        act: i32::from(event.act),
        devices: devices.into_iter().map(super::users::described).collect(),
    }
}
