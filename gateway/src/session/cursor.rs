//! Which stored message a session may be given next. The whole rule, without frames and queues.
//!
//! A session is given seq `at + 1` and nothing else. When the client keeps a cursor, what cannot be given makes the
//! session *behind*: live delivery stops, the client is told once, and only a sync page that reaches `latest` ends it.
//! When the client keeps none (gim's do not), the connection has to end, so that the client comes back and syncs.

use gimbal_codec::Seq;

/// Where a session stands in its user's mailbox. Packed: four bytes that alignment would leave empty are another field's.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(Rust, packed(4))]
pub(super) struct Cursor {
    /// Highest seq given; without a kept cursor: given live, or stored before the sign-in.
    at: Seq,
    /// Highest seq heard of.
    latest: Seq,
    /// The client keeps a cursor.
    is_kept: bool,
    is_behind: bool,
    /// The client has to be told that it is behind, and has not been.
    is_owed: bool,
}

/// What to do with a stored message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offer {
    /// It is the next one: queue it, then [`Cursor::given`]. Without room the session falls behind, or has to end.
    Next,
    /// The session has it.
    Repeated,
    /// It waits for a sync that is under way or that the client was told to make.
    Held,
    /// Something before it is missing: the session falls behind, or has to end.
    Gap,
}

/// Only a new sign-in can mend it: the mailbox went back behind what the session was given, or the session missed
/// something and keeps no cursor by which it could be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lost;

impl Cursor {
    /// At sign-in. A cursor beyond the mailbox (restored from an older copy) goes back to its end, of which the answer
    /// to the sign-in tells the client.
    pub(super) fn new(cursor: Option<Seq>, latest: Seq) -> Self {
        let at = cursor.map_or(latest, |cursor| cursor.min(latest));
        Self { at, latest, is_kept: cursor.is_some(), is_behind: false, is_owed: false }
    }

    /// Highest seq given, if the client keeps a cursor.
    pub(super) fn get(&self) -> Option<Seq> {
        self.is_kept.then_some(self.at)
    }

    /// The client keeps a cursor.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Highest seq heard of.
    pub(super) fn latest(&self) -> Seq {
        self.latest
    }

    /// Messages wait that the session was not given, and that a sync will bring.
    pub(super) fn is_short(&self) -> bool {
        self.is_kept && { self.at } < { self.latest }
    }

    /// A stored message arrived from control.
    pub(super) fn offer(&mut self, seq: Seq, is_syncing: bool) -> Offer {
        self.latest = self.latest.max(seq);
        if seq <= { self.at } {
            Offer::Repeated
        } else if self.is_kept && (is_syncing || self.is_behind) {
            Offer::Held
        } else if seq == { self.at }.next() {
            Offer::Next
        } else {
            Offer::Gap
        }
    }

    /// The message offered as [`Offer::Next`] is queued.
    pub(super) fn given(&mut self, seq: Seq) {
        self.at = seq;
    }

    /// A page up to `end` is queued; the mailbox was at `latest` when it was read.
    pub(super) fn page_given(&mut self, end: Seq, latest: Seq) {
        if self.is_kept {
            self.at = end;
            self.latest = self.latest.max(latest).max(end);
            self.is_behind = false;
            self.is_owed = false;
        }
    }

    /// A page found no room; the mailbox was at `latest` when it was read.
    pub(super) fn page_missed(&mut self, latest: Seq) {
        if self.is_kept {
            self.latest = self.latest.max(latest);
        }
    }

    /// Live delivery stops, and the client has to be told.
    pub(super) fn fall_behind(&mut self) {
        self.is_behind = true;
        self.is_owed = true;
    }

    /// The client has to be told that it is behind.
    pub(super) fn is_owed(&self) -> bool {
        self.is_owed
    }

    /// The client was told.
    pub(super) fn told(&mut self) {
        self.is_owed = false;
    }

    /// Control knows the session again, with the mailbox at `latest`.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn announced(&mut self, latest: Seq) -> Result<(), Lost> {
        let is_lost = if self.is_kept { latest < { self.at } } else { latest != { self.at } };
        if is_lost {
            return Err(Lost);
        }
        // Whatever is stored after this moment is delivered after this item, so nothing higher is worth remembering.
        self.latest = latest;
        if { self.at } == latest {
            self.is_behind = false;
            self.is_owed = false;
        }
        Ok(())
    }
}
