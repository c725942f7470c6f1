//! Reading a mailbox page by page.

use crate::body::Message;
use crate::encoder::{Body, bool_len, element_len, put_bool, put_element, put_uint64, uint64_len};
use crate::error::DecodeError;
use crate::id::Seq;
use crate::limits::SYNC_LIMIT_MAX;
use crate::wire::Fields;

/// Asks for the messages after a seq.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sync {
    /// Exclusive lower bound.
    pub after: Seq,
    /// Most messages wanted; 0: the server's default; above [`SYNC_LIMIT_MAX`] it is lowered to that.
    pub limit: u32,
}

impl Sync {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut sync = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => sync.after = Seq::new(field.uint64()?),
                2 => sync.limit = field.uint32()?,
                _ => {}
            }
        }
        Ok(sync)
    }
}

impl Body for Sync {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.after.get()) + uint64_len(2, u64::from(self.limit))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.after.get());
        put_uint64(out, 2, u64::from(self.limit));
    }
}

/// One page of a mailbox, as a client reads it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SyncPage<'a> {
    /// In rising seq; at most [`SYNC_LIMIT_MAX`].
    pub messages: Vec<Message<'a>>,
    /// The mailbox's newest seq when the page was read.
    pub latest: Seq,
    /// More messages follow the page.
    pub has_more: bool,
    /// Messages up to here are no longer kept.
    pub trimmed_to: Seq,
}

impl<'a> SyncPage<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`], also for more messages than [`SYNC_LIMIT_MAX`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut page = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 if page.messages.len() == SYNC_LIMIT_MAX as usize => return Err(field.over_limit().into()),
                1 => page.messages.push(Message::decode(field.bytes()?)?),
                2 => page.latest = Seq::new(field.uint64()?),
                3 => page.has_more = field.bool()?,
                4 => page.trimmed_to = Seq::new(field.uint64()?),
                _ => {}
            }
        }
        Ok(page)
    }

    fn as_page(&self) -> Page<impl Iterator<Item = Message<'a>> + Clone> {
        Page {
            messages: self.messages.iter().copied(),
            latest: self.latest,
            has_more: self.has_more,
            trimmed_to: self.trimmed_to,
        }
    }
}

impl Body for SyncPage<'_> {
    fn encoded_len(&self) -> usize {
        self.as_page().encoded_len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_page().encode(out);
    }
}

/// One page of a mailbox, as a server writes it: encodes as [`SyncPage`] from messages that are made on the way.
#[derive(Clone, Debug)]
pub struct Page<I> {
    /// In rising seq; walked several times, so cloning must be cheap.
    pub messages: I,
    /// The mailbox's newest seq when the page was read.
    pub latest: Seq,
    /// More messages follow the page.
    pub has_more: bool,
    /// Messages up to here are no longer kept.
    pub trimmed_to: Seq,
}

impl<'m, I: Iterator<Item = Message<'m>> + Clone> Body for Page<I> {
    fn encoded_len(&self) -> usize {
        let messages: usize =
            self.messages.clone().map(|message| element_len(1, message.encoded_len())).sum();
        messages
            + uint64_len(2, self.latest.get())
            + bool_len(3, self.has_more)
            + uint64_len(4, self.trimmed_to.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for message in self.messages.clone() {
            put_element(out, 1, message.encoded_len(), &message);
        }
        put_uint64(out, 2, self.latest.get());
        put_bool(out, 3, self.has_more);
        put_uint64(out, 4, self.trimmed_to.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_message_still_counts_as_one() {
        let page = SyncPage { messages: vec![Message::default(); 2], ..SyncPage::default() };
        let mut bytes = Vec::new();
        page.encode(&mut bytes);
        assert_eq!(bytes, [0x0a, 0, 0x0a, 0]);
        assert_eq!(SyncPage::decode(&bytes), Ok(page));
    }

    #[test]
    fn a_page_is_bounded() {
        let max = SYNC_LIMIT_MAX as usize;
        assert_eq!(SyncPage::decode(&[0x0a, 0].repeat(max)).unwrap().messages.len(), max);
        assert!(SyncPage::decode(&[0x0a, 0].repeat(max + 1)).is_err());
    }
}
