//! Frames of a client to messages (RFC 6455, sections 5 and 7).

use super::head::{BYTES_MAX, CONTROL_BYTES_MAX, Head, Opcode, unmask};
use super::utf8::Utf8;

/// What breaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// RSV1, RSV2 or RSV3 without an extension that means it.
    ReservedBit,
    /// Opcodes 3 to 7 and 11 to 15.
    ReservedOpcode,
    /// A control frame in parts.
    SplitControl,
    /// A control frame of more than 125 bytes.
    LongControl,
    /// A frame of a client without a mask.
    NotMasked,
    /// A length with needless bytes, or of 64 bits.
    BadLength,
    /// A continuation of no message.
    NothingToContinue,
    /// A new message within another.
    Interleaved,
    /// A close frame of one byte.
    ShortClose,
    /// A close code that nobody may send.
    BadCloseCode,
    /// A text or a close reason that is not UTF-8.
    NotUtf8,
    /// A message longer than allowed.
    TooLong,
}

/// One thing a client sent. What a control frame carries has at most 125 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event<'a> {
    /// A whole message.
    Message {
        /// As text, which is UTF-8.
        is_text: bool,
        /// Unmasked.
        payload: &'a [u8],
    },
    /// A frame of a message that goes on.
    Part,
    /// To be answered with the same payload.
    Ping(&'a [u8]),
    /// To be ignored.
    Pong(&'a [u8]),
    /// The client will send no more.
    Close {
        /// `None`: it gave none.
        code: Option<u16>,
        /// UTF-8.
        reason: &'a [u8],
    },
}

/// What of a chunk is not yet read.
#[derive(Debug)]
pub(super) struct Rest<'a> {
    pub(super) chunk: &'a mut [u8],
}

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> &'a mut [u8] {
        let (taken, rest) = std::mem::take(&mut self.chunk).split_at_mut(bytes);
        self.chunk = rest;
        taken
    }
}

/// The frames of one client. Between messages it owns nothing.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    partial: Option<Box<Partial>>,
}

/// What has arrived of a message, and of a frame within it.
#[derive(Debug, Default)]
struct Partial {
    /// The message, when its first frame was seen.
    message: Option<Message>,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// Beginning of the next frame's head.
    head: [u8; BYTES_MAX],
    head_bytes: u8,
    /// Payload of the message, unmasked. Capacity is at most twice the length.
    payload: Vec<u8>,
    /// Payload of a control frame, unmasked.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    is_text: bool,
    utf8: Utf8,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    head: Head,
    /// Payload bytes seen.
    seen: usize,
}

impl Reader {
    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        let size = |partial: &Partial| {
            size_of_val(partial) + partial.payload.capacity() + partial.control.capacity()
        };
        self.partial.as_deref().map_or(0, size)
    }

    /// The next event that ends in `rest`; a payload that began before it is moved to `joined`.
    ///
    /// # Errors
    /// Nothing is read after one.
    pub(super) fn next<'e, 'c: 'e>(
        &mut self,
        rest: &mut Rest<'c>,
        message_bytes_max: usize,
        joined: &'e mut Vec<u8>,
    ) -> Result<Option<Event<'e>>, Violation> {
        if self.partial.is_none() {
            if let Some(event) = whole(rest, message_bytes_max)? {
                return Ok(Some(event));
            }
            if rest.chunk.is_empty() {
                return Ok(None);
            }
        }
        let partial = self.partial.get_or_insert_default();
        let Some(event) = partial.next(rest, message_bytes_max)? else { return Ok(None) };
        let event = match event {
            Ended::Part => Event::Part,
            Ended::Message { is_text } => {
                *joined = std::mem::take(&mut partial.payload);
                Event::Message { is_text, payload: joined }
            }
            Ended::Control(opcode) => {
                *joined = std::mem::take(&mut partial.control);
                control(opcode, joined)?
            }
        };
        if partial.message.is_none() {
            self.partial = None;
        }
        Ok(Some(event))
    }
}

/// An unsplit frame that lies wholly in the chunk; `None`, and nothing taken, when the next one is another.
#[inline]
fn whole<'a>(rest: &mut Rest<'a>, message_bytes_max: usize) -> Result<Option<Event<'a>>, Violation> {
    let Some(head) = Head::peek(rest.chunk)? else { return Ok(None) };
    if head.opcode == Opcode::Continuation {
        return Err(Violation::NothingToContinue);
    }
    if !head.opcode.is_control() && head.payload > message_bytes_max as u64 {
        return Err(Violation::TooLong);
    }
    let payload = head.payload as usize;
    if !head.is_final || rest.chunk.len() - head.bytes < payload {
        return Ok(None);
    }
    rest.take(head.bytes);
    let payload = rest.take(payload);
    unmask(payload, head.mask, 0);
    match head.opcode {
        Opcode::Text => match std::str::from_utf8(payload) {
            Ok(_) => Ok(Some(Event::Message { is_text: true, payload })),
            Err(_) => Err(Violation::NotUtf8),
        },
        Opcode::Binary => Ok(Some(Event::Message { is_text: false, payload })),
        opcode => control(opcode, payload).map(Some),
    }
}

fn control(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, Violation> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping(payload)),
        Opcode::Pong => Ok(Event::Pong(payload)),
        _ => close(payload),
    }
}

fn close(payload: &[u8]) -> Result<Event<'_>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Event::Close { code: None, reason: &[] }),
            _ => Err(Violation::ShortClose),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !may_be_sent(code) {
        return Err(Violation::BadCloseCode);
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Event::Close { code: Some(code), reason }),
        Err(_) => Err(Violation::NotUtf8),
    }
}

/// RFC 6455, 7.4, with the codes registered since (1012 to 1014).
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// What ended within a chunk.
enum Ended {
    Part,
    Message { is_text: bool },
    Control(Opcode),
}

impl Partial {
    /// Reads on to the end of a frame.
    fn next(&mut self, rest: &mut Rest<'_>, message_bytes_max: usize) -> Result<Option<Ended>, Violation> {
        if self.frame.is_none() && !self.begin_frame(rest, message_bytes_max)? {
            return Ok(None);
        }
        let Some(frame) = &mut self.frame else { return Ok(None) };
        let left = frame.head.payload as usize - frame.seen;
        let piece = rest.take(left.min(rest.chunk.len()));
        unmask(piece, frame.head.mask, frame.seen);
        frame.seen += piece.len();
        let Frame { head, seen } = *frame;
        if head.opcode.is_control() {
            append(&mut self.control, piece, CONTROL_BYTES_MAX);
        } else if let Some(message) = &mut self.message {
            if message.is_text {
                message.utf8.push(piece).map_err(|_| Violation::NotUtf8)?;
            }
            append(&mut self.payload, piece, message_bytes_max);
        }
        if seen < head.payload as usize {
            return Ok(None);
        }
        self.frame = None;
        self.end_frame(head).map(Some)
    }

    fn end_frame(&mut self, head: Head) -> Result<Ended, Violation> {
        if head.opcode.is_control() {
            return Ok(Ended::Control(head.opcode));
        }
        match self.message {
            Some(message) if head.is_final => {
                message.utf8.end().map_err(|_| Violation::NotUtf8)?;
                self.message = None;
                Ok(Ended::Message { is_text: message.is_text })
            }
            _ => Ok(Ended::Part),
        }
    }

    /// Reads a head, and whether its frame may come now; `false` when it is not complete.
    fn begin_frame(&mut self, rest: &mut Rest<'_>, message_bytes_max: usize) -> Result<bool, Violation> {
        let head = loop {
            if let Some(head) = Head::peek(&self.head[..usize::from(self.head_bytes)])? {
                break head;
            }
            if rest.chunk.is_empty() {
                return Ok(false);
            }
            // A head has at most 14 bytes and is complete with its last one.
            self.head[usize::from(self.head_bytes)] = rest.take(1)[0];
            self.head_bytes += 1;
        };
        self.head_bytes = 0;
        match (head.opcode, self.message.is_some()) {
            (Opcode::Continuation, false) => return Err(Violation::NothingToContinue),
            (Opcode::Text | Opcode::Binary, true) => return Err(Violation::Interleaved),
            _ => {}
        }
        if !head.opcode.is_control() {
            if head.payload.saturating_add(self.payload.len() as u64) > message_bytes_max as u64 {
                return Err(Violation::TooLong);
            }
            let is_text = head.opcode == Opcode::Text;
            self.message.get_or_insert(Message { is_text, utf8: Utf8::default() });
        }
        self.frame = Some(Frame { head, seen: 0 });
        Ok(true)
    }
}

/// Appends without allocating more than twice what has arrived, nor more than `bytes_max` if that holds it.
fn append(out: &mut Vec<u8>, piece: &[u8], bytes_max: usize) {
    let needed = out.len() + piece.len();
    if needed > out.capacity() {
        let capacity = needed.max((2 * out.len()).min(bytes_max));
        out.reserve_exact(capacity - out.len());
    }
    out.extend_from_slice(piece);
}
