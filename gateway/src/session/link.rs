//! On which link control knows a session.

/// The link on which a session is attached or announced, and whether the announcement waits for its answer. Numbers repeat
/// after 2^15 changes of the link, long after the session was announced on a later one or closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known(u16);

impl Known {
    /// Attached on the link with this number.
    pub(super) fn attached(link: u64) -> Self {
        Self((link << 1) as u16)
    }

    /// Announced on the link with this number and not answered yet. Control executes calls already; a sync would end with
    /// the answer.
    pub(super) fn announced(link: u64) -> Self {
        Self((link << 1) as u16 | 1)
    }

    /// Control knows the session on the link with this number.
    pub(super) fn is_on(self, link: u64) -> bool {
        self.0 | 1 == Self::announced(link).0
    }

    /// Control has answered.
    pub(super) fn is_attached(self) -> bool {
        self.0 & 1 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_on_its_link_and_on_no_other() {
        for link in [0, 1, 3, u64::from(u16::MAX), u64::MAX] {
            for known in [Known::attached(link), Known::announced(link)] {
                assert!(known.is_on(link) && !known.is_on(link.wrapping_add(1)) && !known.is_on(link ^ 2));
            }
            assert!(Known::attached(link).is_attached() && !Known::announced(link).is_attached());
        }
    }
}
