//! Stream bytes to frames.

use crate::error::DecodeError;
use crate::limits::LENGTH_BYTES_MAX;

/// Cuts one connection's bytes into frames. Between feeds it keeps at most the beginning of one frame, and nothing at
/// all, not even capacity, when the last feed ended between frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Beginning of a frame with its length prefix. Capacity is at most twice the length.
    partial: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub const fn new() -> Self {
        Self { partial: Vec::new() }
    }

    /// Takes the next bytes of the stream. Call [`Feed::next_frame`] until it gives `None`: what is not asked for is lost.
    pub const fn feed<'a>(&'a mut self, chunk: &'a [u8]) -> Feed<'a> {
        Feed { decoder: self, chunk, joined: Vec::new() }
    }

    /// Bytes kept of a frame that has not fully arrived.
    pub const fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// Bytes allocated, at most twice [`Self::buffered`].
    pub const fn allocated(&self) -> usize {
        self.partial.capacity()
    }
}

/// The frames that end in one chunk.
#[derive(Debug)]
#[must_use = "frames that are not taken are lost"]
pub struct Feed<'a> {
    decoder: &'a mut Decoder,
    /// What is not yet given or kept.
    chunk: &'a [u8],
    /// The first frame, when it began in an earlier chunk.
    joined: Vec<u8>,
}

impl Feed<'_> {
    /// The next whole frame without its length prefix. `None`: the rest is kept for the next feed.
    /// Frames that lie wholly in the chunk are not copied.
    ///
    /// # Errors
    /// [`DecodeError::FrameTooLarge`] for a packet above `frame_bytes_max`, [`DecodeError::BadLength`],
    /// [`DecodeError::EmptyFrame`]. The stream has no further frames then; asking again gives the same error.
    pub fn next_frame(&mut self, frame_bytes_max: usize) -> Result<Option<&[u8]>, DecodeError> {
        if !self.decoder.partial.is_empty() {
            return self.join(frame_bytes_max);
        }
        let Some(length) = Length::peek(self.chunk, frame_bytes_max)? else {
            self.keep(LENGTH_BYTES_MAX);
            return Ok(None);
        };
        let Some((frame, rest)) = self.chunk.split_at_checked(length.frame_bytes()) else {
            self.keep(length.frame_bytes());
            return Ok(None);
        };
        self.chunk = rest;
        Ok(Some(&frame[length.prefix_bytes..]))
    }

    /// Bytes of the chunk that are neither given as frames nor kept.
    pub const fn unread(&self) -> usize {
        self.chunk.len()
    }

    /// Completes the frame that an earlier chunk began, as far as this one goes.
    fn join(&mut self, frame_bytes_max: usize) -> Result<Option<&[u8]>, DecodeError> {
        let length = loop {
            if let Some(length) = Length::peek(&self.decoder.partial, frame_bytes_max)? {
                break length;
            }
            if self.chunk.is_empty() {
                return Ok(None);
            }
            self.take_up_to(1, LENGTH_BYTES_MAX);
        };
        let missing = length.frame_bytes() - self.decoder.partial.len();
        self.take_up_to(missing, length.frame_bytes());
        if self.decoder.partial.len() < length.frame_bytes() {
            return Ok(None);
        }
        self.joined = std::mem::take(&mut self.decoder.partial);
        Ok(Some(&self.joined[length.prefix_bytes..]))
    }

    /// Keeps the rest of the chunk as the beginning of a frame of `frame_bytes`.
    fn keep(&mut self, frame_bytes: usize) {
        self.take_up_to(self.chunk.len(), frame_bytes);
    }

    /// Moves up to `bytes_max` bytes from the chunk to the partial frame, which will not grow beyond `frame_bytes`.
    fn take_up_to(&mut self, bytes_max: usize, frame_bytes: usize) {
        let (taken, rest) = self.chunk.split_at(bytes_max.min(self.chunk.len()));
        let partial = &mut self.decoder.partial;
        let needed = partial.len() + taken.len();
        if needed > partial.capacity() {
            // Doubling keeps slow arrivals linear; the frame's own length is all that can ever be needed.
            let capacity = needed.max((2 * partial.len()).min(frame_bytes));
            partial.reserve_exact(capacity - partial.len());
        }
        partial.extend_from_slice(taken);
        self.chunk = rest;
    }
}

/// A length prefix that was read and found good.
#[derive(Clone, Copy, Debug)]
struct Length {
    prefix_bytes: usize,
    body_bytes: usize,
}

impl Length {
    /// Reads the prefix at the start of `bytes`; `None` when it is not complete.
    #[inline]
    fn peek(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<Self>, DecodeError> {
        let mut value = 0;
        for (index, &byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Self::check(value, index + 1, frame_bytes_max).map(Some);
            }
        }
        if bytes.len() < LENGTH_BYTES_MAX { Ok(None) } else { Err(DecodeError::BadLength) }
    }

    fn check(value: u64, prefix_bytes: usize, frame_bytes_max: usize) -> Result<Self, DecodeError> {
        let bytes = u32::try_from(value).map_err(|_| DecodeError::BadLength)?;
        if prefix_bytes > 1 && value >> (7 * (prefix_bytes - 1)) == 0 {
            return Err(DecodeError::BadLength);
        }
        match bytes as usize {
            0 => Err(DecodeError::EmptyFrame),
            body_bytes if body_bytes > frame_bytes_max => {
                Err(DecodeError::FrameTooLarge { bytes, bytes_max: frame_bytes_max })
            }
            body_bytes => Ok(Self { prefix_bytes, body_bytes }),
        }
    }

    const fn frame_bytes(self) -> usize {
        self.prefix_bytes + self.body_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1000;

    #[test]
    fn frames_within_a_chunk_are_given_in_order_and_leave_nothing() {
        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(&[1, 7, 2, 8, 9]);
        assert_eq!(feed.next_frame(MAX), Ok(Some(&[7][..])));
        assert_eq!(feed.next_frame(MAX), Ok(Some(&[8, 9][..])));
        assert_eq!(feed.next_frame(MAX), Ok(None));
        assert_eq!((decoder.buffered(), decoder.allocated()), (0, 0));
    }

    #[test]
    fn a_frame_may_arrive_byte_by_byte() {
        let mut frame = vec![0xc8, 0x01];
        frame.extend([5; 200]);
        let mut decoder = Decoder::new();
        for (index, byte) in frame.iter().enumerate() {
            let mut feed = decoder.feed(std::slice::from_ref(byte));
            let is_last = index + 1 == frame.len();
            assert_eq!(feed.next_frame(MAX), Ok(is_last.then_some(&[5; 200][..])));
            assert_eq!(decoder.buffered(), if is_last { 0 } else { index + 1 });
            assert!(decoder.allocated() <= 2 * decoder.buffered());
        }
        assert_eq!(decoder.allocated(), 0);
    }

    #[test]
    fn the_length_is_checked_before_a_byte_of_the_body_is_kept() {
        let mut decoder = Decoder::new();
        let too_large = Err(DecodeError::FrameTooLarge { bytes: 1001, bytes_max: MAX });
        let mut feed = decoder.feed(&[0xe9, 0x07, 1, 2, 3]);
        assert_eq!(feed.next_frame(MAX), too_large);
        assert_eq!(feed.next_frame(MAX), too_large);
        assert_eq!(decoder.allocated(), 0);
        let mut feed = decoder.feed(&[0xe9]);
        assert_eq!(feed.next_frame(MAX), Ok(None));
        let mut feed = decoder.feed(&[0x07, 1, 2, 3]);
        assert_eq!(feed.next_frame(MAX), too_large);
        assert_eq!(feed.next_frame(MAX), too_large);
        assert_eq!(decoder.buffered(), 2);
    }

    #[test]
    fn the_limit_may_grow_between_two_frames_of_one_chunk() {
        let mut chunk = vec![1, 7, 0x80, 0x08];
        chunk.extend([5; 1024]);
        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(&chunk);
        assert_eq!(feed.next_frame(MAX), Ok(Some(&[7][..])));
        assert_eq!(feed.next_frame(2000), Ok(Some(&[5; 1024][..])));
    }

    #[test]
    fn bad_prefixes_are_errors_at_any_split() {
        let cases: [(&[u8], DecodeError); 6] = [
            (&[0], DecodeError::EmptyFrame),
            (&[0x80, 0x00], DecodeError::BadLength),
            (&[0x81, 0x80, 0x00], DecodeError::BadLength),
            (&[0x80, 0x80, 0x80, 0x80, 0x80], DecodeError::BadLength),
            (&[0xff, 0xff, 0xff, 0xff, 0x1f], DecodeError::BadLength),
            (
                &[0xff, 0xff, 0xff, 0xff, 0x0f],
                DecodeError::FrameTooLarge { bytes: u32::MAX, bytes_max: usize::MAX >> 40 },
            ),
        ];
        for (prefix, error) in cases {
            for split in 0..prefix.len() {
                let mut decoder = Decoder::new();
                assert_eq!(decoder.feed(&prefix[..split]).next_frame(usize::MAX >> 40), Ok(None));
                assert_eq!(decoder.feed(&prefix[split..]).next_frame(usize::MAX >> 40), Err(error));
            }
        }
    }
}
