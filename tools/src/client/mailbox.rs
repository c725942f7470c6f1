//! The cursor's rules, kept for the caller: every stored message once, in order, live or by pages.

use std::{collections::VecDeque, time::Duration};

use gimbal_codec::{RoomId, Seq, body::SignInResult, code, limits::SYNC_LIMIT_MAX};
use tokio::time::sleep;

use super::{Client, ClientError, Event, Events, Message, Options, Page};

/// Pause before a page that was refused for now is asked for again.
const RETRY: Duration = Duration::from_millis(200);

/// What a stored message is to a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next one; the cursor moved.
    New,
    /// Seen before.
    Old,
}

/// Position in a mailbox. Pure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    at: Seq,
}

impl Cursor {
    /// After `at`.
    pub const fn new(at: Seq) -> Self {
        Self { at }
    }

    /// Highest seq that was given.
    pub const fn get(self) -> Seq {
        self.at
    }

    /// Judges a message by its seq.
    ///
    /// # Errors
    /// [`ClientError::Gap`] when one before it is missing; the cursor stays.
    pub fn step(&mut self, seq: Seq) -> Result<Step, ClientError> {
        if seq <= self.at {
            return Ok(Step::Old);
        }
        let expected = Seq::new(self.at.get().saturating_add(1));
        if seq != expected {
            return Err(ClientError::Gap { expected, got: seq });
        }
        self.at = seq;
        Ok(Step::New)
    }

    /// Moves over messages that are no longer kept; `true` when there were some.
    pub fn skip_trimmed(&mut self, trimmed_to: Seq) -> bool {
        let skips = trimmed_to > self.at;
        self.at = self.at.max(trimmed_to);
        skips
    }
}

/// What a mailbox gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// The next stored message.
    Message(Message),
    /// A message to a room.
    Room(RoomId, Message),
    /// A message to all or a transient one: not stored.
    Unstored(Message),
    /// Messages up to here are no longer kept and were not given.
    Trimmed(Seq),
    /// Something else the server sent.
    Other(Event),
}

/// A signed-in device that follows its mailbox.
pub struct Mailbox {
    client: Client,
    events: Events,
    cursor: Cursor,
    ready: VecDeque<Item>,
    retry: bool,
}

impl Mailbox {
    /// Connects with `options.cursor`, or from the start when it is `None`. A server that has less than the cursor, as
    /// after a restore, sets it back.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(mut options: Options) -> Result<(Self, SignInResult), ClientError> {
        let wanted = options.cursor.unwrap_or_default();
        options.cursor = Some(wanted);
        let (client, events, result) = Client::connect(options).await?;
        let result = result.unwrap_or_default();
        let cursor = Cursor::new(wanted.min(result.latest));
        Ok((Self { client, events, cursor, ready: VecDeque::new(), retry: false }, result))
    }

    /// To send, join and acknowledge with.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Highest seq that came out of [`Self::next`] or waits to.
    pub const fn cursor(&self) -> Seq {
        self.cursor.get()
    }

    /// The next item; asks for pages by itself when the server says that it is behind.
    ///
    /// # Errors
    /// [`ClientError::Closed`] at the end; [`ClientError::Gap`] when the server broke its promise.
    ///
    /// # Cancel-safety
    /// No item is lost; a page may be asked for again.
    pub async fn next(&mut self) -> Result<Item, ClientError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            let event = tokio::select! {
                event = self.events.next() => event,
                () = sleep(RETRY), if self.retry => {
                    self.ask().await?;
                    continue;
                }
            };
            let Some(event) = event else {
                return Err(ClientError::Closed(
                    self.client.closed().unwrap_or_else(|| super::lost("closed")),
                ));
            };
            self.take(event).await?;
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), ClientError> {
        match event {
            Event::Message(message) if !message.room.is_none() => {
                self.ready.push_back(Item::Room(message.room, message));
            }
            Event::Message(message) if message.seq.is_none() => self.ready.push_back(Item::Unstored(message)),
            Event::Message(message) => self.take_message(message)?,
            Event::Page(Ok(page)) => self.take_page(page)?,
            Event::Page(Err(ClientError::Refused { code: code::SYNC_IN_PROGRESS, .. })) => {} // its page is coming
            Event::Page(Err(ClientError::Refused { code: code::BUSY | code::UNAVAILABLE, .. })) => {
                self.retry = true
            }
            Event::Page(Err(error)) => return Err(error),
            // Also while a page is on its way: then the server has dropped that page.
            Event::Behind { .. } => self.ask().await?,
            Event::Closed(closed) => return Err(ClientError::Closed(closed)),
            other => self.ready.push_back(Item::Other(other)),
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<(), ClientError> {
        self.retry = false;
        self.client.request_page(self.cursor.get(), SYNC_LIMIT_MAX).await
    }

    fn take_message(&mut self, message: Message) -> Result<(), ClientError> {
        if self.cursor.step(message.seq)? == Step::New {
            self.ready.push_back(Item::Message(message));
        }
        Ok(())
    }

    fn take_page(&mut self, page: Page) -> Result<(), ClientError> {
        self.retry = false;
        if self.cursor.skip_trimmed(page.trimmed_to) {
            self.ready.push_back(Item::Trimmed(page.trimmed_to));
        }
        page.messages.into_iter().try_for_each(|message| self.take_message(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_that_was_given_before_is_old() {
        let mut cursor = Cursor::new(Seq::new(5));
        assert_eq!(cursor.step(Seq::new(5)), Ok(Step::Old));
        assert_eq!(cursor.step(Seq::new(6)), Ok(Step::New));
        assert_eq!(cursor.step(Seq::new(6)), Ok(Step::Old));
        assert_eq!(cursor.get(), Seq::new(6));
    }

    #[test]
    fn a_gap_is_an_error_and_moves_nothing() {
        let mut cursor = Cursor::new(Seq::new(5));
        let gap = ClientError::Gap { expected: Seq::new(6), got: Seq::new(7) };
        assert_eq!(cursor.step(Seq::new(7)), Err(gap));
        assert_eq!(cursor.get(), Seq::new(5));
    }

    #[test]
    fn trimmed_messages_are_skipped_once() {
        let mut cursor = Cursor::default();
        assert!(cursor.skip_trimmed(Seq::new(3)));
        assert!(!cursor.skip_trimmed(Seq::new(3)));
        assert_eq!(cursor.step(Seq::new(4)), Ok(Step::New));
    }

    #[test]
    fn the_end_of_numbers_is_no_panic() {
        let mut cursor = Cursor::new(Seq::new(u64::MAX));
        assert_eq!(cursor.step(Seq::new(u64::MAX)), Ok(Step::Old));
    }

    proptest! {
        #[test]
        fn only_the_next_seq_moves_the_cursor(at in 0u64..100, seqs in prop::collection::vec(0u64..120, 0..50)) {
            let mut cursor = Cursor::new(Seq::new(at));
            for seq in seqs {
                let before = cursor.get().get();
                let step = cursor.step(Seq::new(seq));
                let moved = cursor.get().get() - before;
                prop_assert_eq!(moved, u64::from(seq == before + 1));
                prop_assert_eq!(step == Ok(Step::New), moved == 1);
                prop_assert_eq!(step.is_err(), seq > before + 1);
            }
        }
    }
}
