//! UTF-8 that arrives in pieces: each piece is judged as far as it goes, so that bad text is refused at once.

/// What is known of a text so far: the beginning of one character, at most three bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Utf8 {
    begun: [u8; 4],
    count: u8,
}

/// Not UTF-8, whatever may follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotUtf8;

impl Utf8 {
    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), NotUtf8> {
        let mut rest = piece;
        while self.count > 0 {
            let Some((&byte, after)) = rest.split_first() else { return Ok(()) };
            rest = after;
            self.begun[usize::from(self.count)] = byte;
            self.count += 1;
            match std::str::from_utf8(&self.begun[..usize::from(self.count)]) {
                Ok(_) => self.count = 0,
                Err(error) if error.error_len().is_some() => return Err(NotUtf8),
                Err(_) => {}
            }
        }
        let Err(error) = std::str::from_utf8(rest) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(NotUtf8);
        }
        let begun = &rest[error.valid_up_to()..];
        self.begun[..begun.len()].copy_from_slice(begun);
        self.count = begun.len() as u8;
        Ok(())
    }

    /// The text ends here.
    pub(super) const fn end(self) -> Result<(), NotUtf8> {
        if self.count == 0 { Ok(()) } else { Err(NotUtf8) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judge<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), NotUtf8> {
        let mut utf8 = Utf8::default();
        for piece in pieces {
            utf8.push(piece)?;
        }
        utf8.end()
    }

    proptest! {
        #[test]
        fn any_split_is_judged_as_the_whole(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                any::<String>().prop_map(String::into_bytes),
                prop::collection::vec(prop::sample::select(vec![0x41u8, 0x80, 0xbf, 0xc2, 0xe0, 0xed, 0xa0, 0xf0, 0x90, 0xf4, 0x8f]), 0..12),
            ],
            size in 1usize..6,
        ) {
            let is_text = std::str::from_utf8(&bytes).is_ok();
            prop_assert_eq!(judge(bytes.chunks(size)).is_ok(), is_text);
            prop_assert_eq!(judge(std::iter::once(&bytes[..])).is_ok(), is_text);
        }
    }
}
