//! What happened to messages lately: a ring of small records in memory, written where deliveries are released, acks applied
//! and pages answered, and read by an operator who asks about one message.
//!
//! Records are in the order in which they were written, so all that happened to a message after one of its records is in the
//! ring as long as that record is. What is older is known to the store alone: see [`read`].

pub mod read;

use std::sync::{Mutex, MutexGuard, PoisonError};

use gimbal_codec::{DeviceId, GatewayId, MessageId, Seq, SessionKey, UserId};

/// Memory of one record.
pub const RECORD_BYTES: usize = size_of::<Record>();
const _: () = assert!(RECORD_BYTES == 64, "one line of the cache");

/// Records that a reader looks at before it lets others in: some 10 us.
const CHUNK: usize = 4096;

/// One thing that happened; times are Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// After its commit a message was handed to the gateway of a session.
    Pushed {
        /// The message.
        message: MessageId,
        /// Whose mailbox.
        user: UserId,
        /// Its place there.
        seq: Seq,
        /// Of the session.
        device: DeviceId,
        /// Its slot at the gateway.
        session: SessionKey,
        /// The gateway.
        gateway: GatewayId,
        /// When.
        at_ms: i64,
        /// The way to the gateway was full or broken, and the item lost: the session learns of it by a sync.
        lost: bool,
    },
    /// After its commit nobody of its user was online.
    Offline {
        /// The message.
        message: MessageId,
        /// Whose mailbox.
        user: UserId,
        /// Its place there.
        seq: Seq,
        /// When.
        at_ms: i64,
    },
    /// A device asked for what comes after a place in its mailbox, and was answered.
    Paged {
        /// Whose mailbox.
        user: UserId,
        /// Who asked.
        device: DeviceId,
        /// What it has.
        after: Seq,
        /// The last that it was answered; `after` when there was no more.
        end: Seq,
        /// When.
        at_ms: i64,
    },
    /// A device acknowledged.
    Acked {
        /// Whose mailbox.
        user: UserId,
        /// Whose ack.
        device: DeviceId,
        /// Everything up to here.
        seq: Seq,
        /// When.
        at_ms: i64,
    },
}

impl Record {
    /// When it was.
    pub const fn at_ms(&self) -> i64 {
        match self {
            Self::Pushed { at_ms, .. }
            | Self::Offline { at_ms, .. }
            | Self::Paged { at_ms, .. }
            | Self::Acked { at_ms, .. } => *at_ms,
        }
    }
}

/// The ring, shared by the writer, the readers and whoever asks. Each holds its lock for some records only.
#[derive(Debug)]
pub struct Trace {
    kept: usize,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// The one with number `n` is at `n % kept`. Room for all is taken at the start; the system gives it as it fills.
    records: Vec<Record>,
    /// Ever written.
    count: u64,
}

impl Trace {
    /// Records unless told otherwise: 4 MiB.
    pub const KEPT: usize = 65_536;

    /// For so many records, of [`RECORD_BYTES`] each; 0: none is kept.
    pub fn new(kept: usize) -> Self {
        Self { kept, ring: Mutex::new(Ring { records: Vec::with_capacity(kept), count: 0 }) }
    }

    /// To write with; `None` when nothing is kept.
    pub fn pen(&self) -> Option<Pen<'_>> {
        (self.kept > 0).then(|| Pen { kept: self.kept, ring: self.lock() })
    }

    /// A device asked for what comes after `after`, and was answered up to `end`.
    pub fn note_page(&self, user: UserId, device: DeviceId, (after, end): (Seq, Seq), at_ms: i64) {
        if let Some(mut pen) = self.pen() {
            pen.write(Record::Paged { user, device, after, end, at_ms });
        }
    }

    /// Bytes that the records take now.
    pub fn bytes(&self) -> usize {
        self.lock().records.len() * RECORD_BYTES
    }

    /// The oldest record's time: of what was released since then all is known. `None`: there is no record.
    pub fn since_ms(&self) -> Option<i64> {
        let ring = self.lock();
        let oldest = ring.count.checked_sub(ring.records.len() as u64)?;
        ring.get(oldest, self.kept).map(Record::at_ms)
    }

    /// Whether anything was forgotten for want of room.
    pub fn is_full(&self) -> bool {
        let ring = self.lock();
        ring.count > ring.records.len() as u64 || self.kept == 0
    }

    /// Shows `visit` the records from the oldest to the newest. The writer may write between some of them.
    pub fn scan(&self, mut visit: impl FnMut(&Record)) {
        let mut next = 0;
        loop {
            let ring = self.lock();
            next = next.max(ring.count - ring.records.len() as u64);
            let end = ring.count.min(next + CHUNK as u64);
            if next == end {
                return;
            }
            for number in next..end {
                ring.get(number, self.kept).into_iter().for_each(&mut visit);
            }
            next = end;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn get(&self, number: u64, kept: usize) -> Option<&Record> {
        self.records.get((number % kept.max(1) as u64) as usize)
    }
}

/// The ring while one writes.
pub struct Pen<'a> {
    kept: usize,
    ring: MutexGuard<'a, Ring>,
}

impl Pen<'_> {
    /// How many were written before: where [`Self::lose`] begins.
    pub fn count(&self) -> u64 {
        self.ring.count
    }

    /// Adds one in place of the oldest. Never allocates.
    pub fn write(&mut self, record: Record) {
        let ring = &mut *self.ring;
        if ring.records.len() < self.kept {
            ring.records.push(record);
        } else {
            ring.records[(ring.count % self.kept as u64) as usize] = record;
        }
        ring.count += 1;
    }

    /// What was handed to `gateway` since there were `since` records was lost.
    pub fn lose(&mut self, since: u64, gateway: GatewayId) {
        let ring = &mut *self.ring;
        let oldest = ring.count - ring.records.len() as u64;
        for number in since.max(oldest)..ring.count {
            if let Record::Pushed { gateway: to, lost, .. } =
                &mut ring.records[(number % self.kept as u64) as usize]
            {
                *lost |= *to == gateway;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offline(number: u64) -> Record {
        let id = MessageId::new(number);
        Record::Offline { message: id, user: UserId::new(1), seq: Seq::new(number), at_ms: number as i64 }
    }

    fn all(trace: &Trace) -> Vec<Record> {
        let mut found = Vec::new();
        trace.scan(|record| found.push(*record));
        found
    }

    #[test]
    fn the_newest_are_kept_in_their_order_and_their_time_is_known() {
        let trace = Trace::new(CHUNK + 2);
        assert_eq!((trace.since_ms(), trace.is_full(), all(&trace)), (None, false, vec![]));
        let last = 2 * CHUNK as u64;
        for number in 0..=last {
            trace.pen().unwrap().write(offline(number));
        }
        let first = last + 1 - (CHUNK as u64 + 2);
        assert_eq!(all(&trace), (first..=last).map(offline).collect::<Vec<_>>());
        assert_eq!((trace.since_ms(), trace.is_full()), (Some(first as i64), true));
        assert_eq!(trace.bytes(), (CHUNK + 2) * RECORD_BYTES);
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let trace = Trace::new(0);
        assert!(trace.pen().is_none() && trace.is_full());
        assert_eq!((trace.since_ms(), all(&trace), trace.bytes()), (None, vec![], 0));
    }

    #[test]
    fn what_a_gateway_lost_is_marked_from_then_on_and_no_other_gateways() {
        let trace = Trace::new(3);
        let pushed = |gateway| Record::Pushed {
            message: MessageId::new(1),
            user: UserId::new(1),
            seq: Seq::new(1),
            device: DeviceId::new(1),
            session: SessionKey::from_u64(1),
            gateway: GatewayId::new(gateway),
            at_ms: 1,
            lost: false,
        };
        let mut pen = trace.pen().unwrap();
        (0..2).for_each(|_| pen.write(pushed(7)));
        let since = pen.count();
        [pushed(7), pushed(8)].into_iter().for_each(|record| pen.write(record));
        pen.lose(since, GatewayId::new(7));
        drop(pen);
        let lost: Vec<bool> =
            all(&trace).iter().map(|record| matches!(record, Record::Pushed { lost: true, .. })).collect();
        assert_eq!(lost, [false, true, false]);
    }
}
