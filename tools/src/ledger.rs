//! The ledger of a load run: what each sender sent and was told, what each mailbox was given, and whether all agree.
//!
//! Pure. A run knows its mailboxes from birth: each is fed by exactly one sender, so a mailbox must hold that sender's
//! stored numbers, rising, at seq 1, 2, 3 and so on. [`verify`] says where it does not.

use std::fmt;

/// Bytes of the mark at the start of every message.
pub const MARK_BYTES: usize = 24;

/// What every message carries, so that its end can be compared with its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// This run.
    pub run: u64,
    /// The sender, from 0.
    pub sender: u32,
    /// The message, per sender from 0.
    pub number: u32,
    /// When it should have been sent, nanoseconds since the run began.
    pub intended_ns: u64,
}

impl Mark {
    /// The mark and then padding up to `bytes`, at least [`MARK_BYTES`].
    pub fn write(&self, bytes: usize, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.run.to_be_bytes());
        out.extend_from_slice(&self.sender.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.intended_ns.to_be_bytes());
        out.resize(bytes.max(MARK_BYTES), b'.');
    }

    /// The mark of a message, if it is long enough to have one.
    pub fn read(content: &[u8]) -> Option<Self> {
        let number = |at: usize, bytes: usize| {
            let part = content.get(at..at + bytes)?;
            Some(part.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte)))
        };
        Some(Self {
            run: number(0, 8)?,
            sender: number(8, 4)? as u32,
            number: number(12, 4)? as u32,
            intended_ns: number(16, 8)?,
        })
    }
}

/// What became of one message, as its sender was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// No answer yet: it may be stored or not.
    Open,
    /// Stored durably at this seq of the recipient's mailbox.
    Acked(u64),
    /// Refused: it must not be stored.
    Refused,
}

/// One sender's page.
#[derive(Default, Debug)]
pub struct Sent {
    outcomes: Vec<Outcome>,
    faults: Vec<Fault>,
    open: usize,
    acked: usize,
}

impl Sent {
    /// Enters a new message and returns its number.
    ///
    /// # Panics
    /// After 2^32 messages of one sender.
    pub fn enter(&mut self) -> u32 {
        let number =
            u32::try_from(self.outcomes.len()).expect("a run sends fewer than 2^32 messages per sender");
        self.outcomes.push(Outcome::Open);
        self.open += 1;
        number
    }

    /// Enters the answer to a message.
    pub fn answer(&mut self, number: u32, outcome: Outcome) {
        match self.outcomes.get_mut(number as usize) {
            Some(slot) if *slot == Outcome::Open => {
                *slot = outcome;
                self.open -= usize::from(outcome != Outcome::Open);
                self.acked += usize::from(matches!(outcome, Outcome::Acked(_)));
            }
            _ => self.faults.push(Fault::AnsweredTwice { number }),
        }
    }

    /// Messages entered.
    pub fn count(&self) -> usize {
        self.outcomes.len()
    }

    /// Messages without an answer.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Messages acknowledged.
    pub fn acked(&self) -> usize {
        self.acked
    }
}

/// One mailbox as its connection was given it, live or by sync.
#[derive(Default, Debug)]
pub struct Received {
    numbers: Vec<u32>,
    faults: Vec<Fault>,
}

impl Received {
    /// Highest seq that was given: the cursor.
    pub fn cursor(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// Enters a message; `false` when it is not the next one or not of this run and sender.
    pub fn enter(&mut self, seq: u64, mark: Option<Mark>, run: u64, sender: u32) -> bool {
        let expected = self.cursor() + 1;
        if seq != expected {
            self.faults.push(if seq < expected {
                Fault::GivenTwice { seq }
            } else {
                Fault::Gap { expected, got: seq }
            });
            return false;
        }
        match mark {
            Some(mark) if mark.run == run && mark.sender == sender => self.numbers.push(mark.number),
            _ => {
                self.faults.push(Fault::Foreign { seq });
                return false;
            }
        }
        true
    }
}

/// What is wrong, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A message was answered twice, or was never sent.
    AnsweredTwice {
        /// The sender's number.
        number: u32,
    },
    /// A connection was given a seq again.
    GivenTwice {
        /// Position.
        seq: u64,
    },
    /// A connection was given a later seq before an earlier one.
    Gap {
        /// The seq that was due.
        expected: u64,
        /// The seq that came.
        got: u64,
    },
    /// A message of another run or sender, or without a mark.
    Foreign {
        /// Position.
        seq: u64,
    },
    /// The mailbox does not count 1, 2, 3.
    SeqGap {
        /// The seq that was due.
        expected: u64,
        /// The seq that stands there.
        got: u64,
    },
    /// A number stands at or below its predecessor: stored twice, or out of the sender's order.
    Order {
        /// Position.
        seq: u64,
        /// Number before it.
        before: u32,
        /// Its number.
        number: u32,
    },
    /// An acknowledged message is not in the mailbox.
    Lost {
        /// The sender's number.
        number: u32,
        /// The seq it was acknowledged with.
        seq: u64,
    },
    /// A message stands at another seq than it was acknowledged with.
    Moved {
        /// The sender's number.
        number: u32,
        /// Seq in the acknowledgement.
        acked: u64,
        /// Seq in the mailbox.
        stored: u64,
    },
    /// A refused message is in the mailbox, or one that was never sent.
    Unasked {
        /// Its number.
        number: u32,
    },
    /// The connection was not given what the mailbox holds at this seq.
    NotGiven {
        /// Position.
        seq: u64,
    },
    /// The connection was given another message than the mailbox holds at this seq.
    Differs {
        /// Position.
        seq: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AnsweredTwice { number } => write!(f, "message {number} was answered twice"),
            Self::GivenTwice { seq } => write!(f, "seq {seq} was given twice"),
            Self::Gap { expected, got } => write!(f, "seq {got} was given before {expected}"),
            Self::Foreign { seq } => write!(f, "seq {seq} is not a message of this run's sender"),
            Self::SeqGap { expected, got } => write!(f, "the mailbox has seq {got} where {expected} is due"),
            Self::Order { seq, before, number } => write!(f, "seq {seq} is message {number} after {before}"),
            Self::Lost { number, seq } => write!(f, "message {number}, acknowledged as seq {seq}, is lost"),
            Self::Moved { number, acked, stored } => {
                write!(f, "message {number}, acknowledged as seq {acked}, stands at seq {stored}")
            }
            Self::Unasked { number } => {
                write!(f, "message {number} is stored though it was refused or never sent")
            }
            Self::NotGiven { seq } => write!(f, "seq {seq} is stored and was never given to the connection"),
            Self::Differs { seq } => write!(f, "seq {seq} was given with another message than is stored"),
        }
    }
}

/// Faults listed of one mailbox; the others are only counted by the caller's total.
pub const FAULTS_LISTED_MAX: usize = 20;

/// Compares a sender's page, what the recipient's connection was given, and the mailbox itself as `(seq, mark)` read by sync.
pub fn verify(
    run: u64,
    sender: u32,
    sent: &Sent,
    received: &Received,
    mailbox: &[(u64, Option<Mark>)],
) -> Vec<Fault> {
    let mut faults = [sent.faults.as_slice(), received.faults.as_slice()].concat();
    let mut stored_at = vec![0u64; sent.outcomes.len()];
    let mut before: Option<u32> = None;
    for (index, &(seq, mark)) in mailbox.iter().enumerate() {
        let expected = index as u64 + 1;
        if seq != expected {
            faults.push(Fault::SeqGap { expected, got: seq });
        }
        let Some(mark) = mark.filter(|mark| mark.run == run && mark.sender == sender) else {
            faults.push(Fault::Foreign { seq });
            continue;
        };
        if let Some(before) = before.filter(|&before| mark.number <= before) {
            faults.push(Fault::Order { seq, before, number: mark.number });
        }
        before = Some(mark.number);
        match sent.outcomes.get(mark.number as usize) {
            None | Some(Outcome::Refused) => faults.push(Fault::Unasked { number: mark.number }),
            Some(_) => stored_at[mark.number as usize] = seq,
        }
        match received.numbers.get(index) {
            None => faults.push(Fault::NotGiven { seq }),
            Some(&number) if number != mark.number => faults.push(Fault::Differs { seq }),
            Some(_) => {}
        }
    }
    verify_acks(sent, &stored_at, &mut faults);
    faults
}

fn verify_acks(sent: &Sent, stored_at: &[u64], faults: &mut Vec<Fault>) {
    for (number, (outcome, &stored)) in sent.outcomes.iter().zip(stored_at).enumerate() {
        let Outcome::Acked(acked) = *outcome else { continue };
        let number = number as u32;
        match stored {
            0 => faults.push(Fault::Lost { number, seq: acked }),
            stored if stored != acked => faults.push(Fault::Moved { number, acked, stored }),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: u64 = 77;

    fn mark(number: u32) -> Option<Mark> {
        Some(Mark { run: RUN, sender: 3, number, intended_ns: 0 })
    }

    /// Three messages sent, acknowledged, given and stored.
    fn good() -> (Sent, Received, Vec<(u64, Option<Mark>)>) {
        let (mut sent, mut received, mut mailbox) = (Sent::default(), Received::default(), Vec::new());
        for seq in 1..=3 {
            let number = sent.enter();
            sent.answer(number, Outcome::Acked(seq));
            assert!(received.enter(seq, mark(number), RUN, 3));
            mailbox.push((seq, mark(number)));
        }
        (sent, received, mailbox)
    }

    fn faults(case: &(Sent, Received, Vec<(u64, Option<Mark>)>)) -> Vec<Fault> {
        verify(RUN, 3, &case.0, &case.1, &case.2)
    }

    #[test]
    fn a_run_in_which_all_agree_has_no_fault() {
        let case = good();
        assert_eq!(faults(&case), []);
        assert_eq!((case.0.acked(), case.0.open(), case.1.cursor()), (3, 0, 3));
    }

    #[test]
    fn an_acknowledged_message_that_is_missing_is_lost() {
        let mut case = good();
        case.2.pop();
        assert_eq!(faults(&case), [Fault::Lost { number: 2, seq: 3 }]);
    }

    #[test]
    fn a_message_stored_twice_is_found() {
        let mut case = good();
        case.2.push((4, mark(2)));
        case.1.enter(4, mark(2), RUN, 3);
        let found = faults(&case);
        assert!(found.contains(&Fault::Order { seq: 4, before: 2, number: 2 }), "{found:?}");
    }

    #[test]
    fn reordered_messages_are_found() {
        let mut case = good();
        case.2.swap(0, 1);
        (case.2[0].0, case.2[1].0) = (1, 2);
        let found = faults(&case);
        assert!(found.contains(&Fault::Order { seq: 2, before: 1, number: 0 }), "{found:?}");
        assert!(found.contains(&Fault::Moved { number: 0, acked: 1, stored: 2 }), "{found:?}");
        assert!(found.contains(&Fault::Differs { seq: 1 }), "{found:?}");
    }

    #[test]
    fn a_gap_in_the_mailbox_is_found() {
        let mut case = good();
        case.2[2].0 = 4;
        assert!(faults(&case).contains(&Fault::SeqGap { expected: 3, got: 4 }));
    }

    #[test]
    fn what_is_stored_but_never_given_is_found() {
        let mut case = good();
        case.1.numbers.pop();
        assert_eq!(faults(&case), [Fault::NotGiven { seq: 3 }]);
    }

    #[test]
    fn a_connection_that_skips_or_repeats_is_found() {
        let mut case = good();
        assert!(!case.1.enter(3, mark(2), RUN, 3));
        assert!(!case.1.enter(5, mark(4), RUN, 3));
        assert_eq!(faults(&case), [Fault::GivenTwice { seq: 3 }, Fault::Gap { expected: 4, got: 5 }]);
    }

    #[test]
    fn a_refused_message_that_is_stored_is_found() {
        let mut case = good();
        case.0.outcomes[1] = Outcome::Refused;
        assert_eq!(faults(&case), [Fault::Unasked { number: 1 }]);
    }

    #[test]
    fn a_message_without_an_answer_may_be_stored_or_not() {
        let mut case = good();
        case.0.outcomes[2] = Outcome::Open;
        assert_eq!(faults(&case), []);
        case.2.pop();
        case.1.numbers.pop();
        assert_eq!(faults(&case), []);
    }

    #[test]
    fn an_answer_that_comes_twice_or_for_nothing_is_found() {
        let mut case = good();
        case.0.answer(0, Outcome::Acked(1));
        case.0.answer(9, Outcome::Refused);
        assert_eq!(faults(&case), [Fault::AnsweredTwice { number: 0 }, Fault::AnsweredTwice { number: 9 }]);
    }

    #[test]
    fn a_foreign_message_is_found() {
        let mut case = good();
        case.2[1].1 = Some(Mark { run: 1, sender: 3, number: 1, intended_ns: 0 });
        assert!(faults(&case).contains(&Fault::Foreign { seq: 2 }));
        case.2[1].1 = None;
        assert!(faults(&case).contains(&Fault::Foreign { seq: 2 }));
    }

    proptest! {
        #[test]
        fn a_mark_survives_its_trip(run: u64, sender: u32, number: u32, intended_ns: u64, bytes in 0usize..200) {
            let mark = Mark { run, sender, number, intended_ns };
            let mut out = Vec::new();
            mark.write(bytes, &mut out);
            prop_assert_eq!(out.len(), bytes.max(MARK_BYTES));
            prop_assert_eq!(Mark::read(&out), Some(mark));
        }

        #[test]
        fn content_of_any_length_is_read_without_panic(content: Vec<u8>) {
            prop_assert_eq!(Mark::read(&content).is_some(), content.len() >= MARK_BYTES);
        }

        #[test]
        fn removing_any_stored_message_is_noticed(count in 1u32..40, at in 0usize..40) {
            let (mut sent, mut received, mut mailbox) = (Sent::default(), Received::default(), Vec::new());
            for _ in 0..count {
                let number = sent.enter();
                let seq = u64::from(number) + 1;
                sent.answer(number, Outcome::Acked(seq));
                received.enter(seq, mark(number), RUN, 3);
                mailbox.push((seq, mark(number)));
            }
            mailbox.remove(at % count as usize);
            prop_assert!(!verify(RUN, 3, &sent, &received, &mailbox).is_empty());
        }
    }
}
