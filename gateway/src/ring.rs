//! A shard's io_uring: what it asks of the kernel and what comes back. The only `unsafe` of this crate is here.
//!
//! Memory the kernel works on (receive arena, bytes being sent, the doorbell's counter, the tick) belongs to [`Ring`]
//! until the completion of the operation that uses it; if the ring must go while operations are in flight, the
//! memory is leaked rather than freed.

#![allow(unsafe_code)]

pub mod bare;
mod buffers;
mod carrier;
mod completion;
mod doorbell;
pub(crate) mod os;
mod sends;
pub(crate) mod setup;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::mem::{ManuallyDrop, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gimbal_codec::{SessionKey, ShardId};
use io_uring::squeue::{self, Entry};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use crate::carrier::ReceiveEnd;
use buffers::Buffers;
pub(crate) use buffers::Chunk;
pub(crate) use completion::Completion;
use completion::{Kind, user_data};
pub(crate) use doorbell::Doorbell;
use sends::Sends;

/// Completions copied out of the shared queue at once.
const COPY_COUNT: usize = 256;

/// How long a ring that goes away waits for its cancelled operations before it leaks their memory.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Counters of one ring; read by its shard, which publishes them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct RingCounts {
    /// Calls of `io_uring_enter`.
    pub(crate) enters: u64,
    /// Send operations submitted.
    pub(crate) sends: u64,
    /// Receives that ended because no buffer was free.
    pub(crate) no_buffers: u64,
}

/// What the kernel reads or writes while operations are in flight.
struct Memory {
    buffers: Buffers,
    sends: Sends,
    doorbell: Arc<Doorbell>,
    /// The doorbell's counter is read into this.
    rung: Box<u64>,
    tick: Box<Timespec>,
}

/// One shard's ring. Built on the thread that uses it (SINGLE_ISSUER), and not `Send`.
pub(crate) struct Ring {
    shard: ShardId,
    uring: ManuallyDrop<IoUring>,
    memory: ManuallyDrop<Memory>,
    /// Entries that found the submission queue full; they go first. At most a few per connection.
    backlog: VecDeque<Entry>,
    /// Completions copied out and not handed on, newest last.
    ready: VecDeque<cqueue::Entry>,
    /// Operations whose last completion has not been seen.
    in_flight: usize,
    counts: RingCounts,
    /// Raw pointers in `Memory` make it so already; stated for the reader.
    _not_send: std::marker::PhantomData<*const ()>,
}

static_assertions::assert_not_impl_any!(Ring: std::marker::Send, Sync);

impl Ring {
    /// A ring for this thread, with its receive buffers lent, its doorbell armed and its tick of `tick` started.
    ///
    /// # Errors
    /// What `io_uring_setup` or the registration of buffers says; `setup::explain` turns it into words.
    pub(crate) fn new(shard: ShardId, doorbell: Arc<Doorbell>, tick: Duration) -> io::Result<Self> {
        let (uring, _mode) = setup::build()?;
        let buffers = Buffers::register(&uring)?;
        let tick = Box::new(Timespec::from(tick));
        let memory = Memory { buffers, sends: Sends::default(), doorbell, rung: Box::new(0), tick };
        let mut ring = Self {
            shard,
            uring: ManuallyDrop::new(uring),
            memory: ManuallyDrop::new(memory),
            backlog: VecDeque::new(),
            ready: VecDeque::with_capacity(COPY_COUNT),
            in_flight: 0,
            counts: RingCounts::default(),
            _not_send: std::marker::PhantomData,
        };
        ring.arm_doorbell();
        ring.arm_tick();
        Ok(ring)
    }

    /// Accepts from `listener`, which is the caller's number `index`, until [`Completion::AcceptEnded`]. The listener must
    /// stay open until then.
    pub(crate) fn accept(&mut self, index: u8, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(user_data(Kind::Accept, index.into())));
    }

    /// Ends [`Self::accept`] of listener `index`; its end comes as a completion.
    pub(crate) fn cancel_accept(&mut self, index: u8) {
        let entry = opcode::AsyncCancel::new(user_data(Kind::Accept, index.into())).build();
        self.push(entry.user_data(user_data(Kind::Cancel, 0)));
    }

    /// Receives from `socket` until [`Completion::ReceiveEnded`]. The socket must stay open until then.
    pub(crate) fn receive(&mut self, key: SessionKey, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), buffers::GROUP).build();
        self.push(entry.user_data(user_data(Kind::Receive, strip_shard(key))));
    }

    /// Receives from `socket` into one buffer. The socket must stay open until the completion.
    pub(crate) fn receive_once(&mut self, key: SessionKey, socket: BorrowedFd<'_>) {
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), buffers::BUFFER_BYTES as u32)
            .buf_group(buffers::GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(user_data(Kind::Receive, strip_shard(key))));
    }

    /// Sends what of `bytes` the socket takes at once, or, when it takes nothing now, as soon as it takes some;
    /// [`Completion::Sent`] follows. The socket must stay open until then, and two sends at a time have no order.
    pub(crate) fn send(&mut self, key: SessionKey, socket: BorrowedFd<'_>, bytes: Bytes) {
        let length = u32::try_from(bytes.len()).expect("queues are bounded far below 4 GiB");
        let entry =
            opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), length).flags(libc::MSG_NOSIGNAL);
        let index = self.memory.sends.insert(key, bytes);
        self.counts.sends += 1;
        self.push(entry.build().user_data(user_data(Kind::Send, u64::from(index))));
    }

    /// Closes `socket`, which has no operation in flight; [`Completion::Closed`] follows.
    pub(crate) fn close(&mut self, key: SessionKey, socket: OwnedFd) {
        let entry = opcode::Close::new(Fd(socket.into_raw_fd())).build();
        self.push(entry.user_data(user_data(Kind::Close, strip_shard(key))));
    }

    /// Hands what is queued to the kernel and, with `wait`, sleeps until something completes.
    ///
    /// # Errors
    /// Only what no later call would mend; interruptions and a full completion queue are not errors.
    pub(crate) fn enter(&mut self, wait: bool) -> io::Result<()> {
        self.flush_backlog();
        // What is in the backlog is not in flight, so nobody would wake us for it.
        let wait =
            wait && self.backlog.is_empty() && self.ready.is_empty() && self.uring.completion().is_empty();
        if !wait && !self.needs_enter() {
            return Ok(());
        }
        self.counts.enters += 1;
        match self.uring.submit_and_wait(usize::from(wait)) {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next completion, if one has arrived.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            if self.ready.is_empty() {
                self.copy_completions();
            }
            let entry = self.ready.pop_front()?;
            if let Some(completion) = self.complete(&entry) {
                return Some(completion);
            }
        }
    }

    /// Whether a completion waits.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.ready.is_empty() || !self.uring.completion().is_empty()
    }

    /// What was received, for its owner to work in.
    pub(crate) fn bytes_mut(&mut self, chunk: &mut Chunk) -> &mut [u8] {
        self.memory.buffers.bytes_mut(chunk)
    }

    /// Gives a receive buffer back.
    pub(crate) fn recycle(&mut self, chunk: Chunk) {
        self.memory.buffers.recycle(chunk);
    }

    /// Appends the sessions whose send is in flight.
    pub(crate) fn sends_in_flight(&self, out: &mut Vec<SessionKey>) {
        self.memory.sends.keys(out);
    }

    /// Counters since it was built.
    pub(crate) fn counts(&self) -> RingCounts {
        self.counts
    }

    fn arm_doorbell(&mut self) {
        let buffer: *mut u64 = &raw mut *self.memory.rung;
        let entry =
            opcode::Read::new(Fd(self.memory.doorbell.fd()), buffer.cast(), size_of::<u64>() as u32).build();
        self.push(entry.user_data(user_data(Kind::Doorbell, 0)));
    }

    fn arm_tick(&mut self) {
        let entry = opcode::Timeout::new(&raw const *self.memory.tick).build();
        self.push(entry.user_data(user_data(Kind::Tick, 0)));
    }

    fn push(&mut self, entry: Entry) {
        self.in_flight += 1;
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &Entry) -> bool {
        if self.try_push_once(entry) {
            return true;
        }
        self.counts.enters += 1;
        // An error leaves the queue full: the entry waits in the backlog, and `enter` reports what is lasting.
        let _ = self.uring.submit();
        self.try_push_once(entry)
    }

    /// `false`: the submission queue is full.
    fn try_push_once(&mut self, entry: &Entry) -> bool {
        // SAFETY: every entry is built in this module from memory of `self.memory`, which is neither moved nor freed
        // before the operation's last completion: the arena and the boxes never, a payload by its slot in `sends`.
        // Descriptors are the caller's promise and name no memory.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.front().cloned() {
            if !self.try_push(&entry) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn needs_enter(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    fn copy_completions(&mut self) {
        let mut queue = self.uring.completion();
        queue.sync();
        self.ready.extend(queue.by_ref().take(COPY_COUNT));
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (kind, value) = completion::parse(entry.user_data());
        let more = cqueue::more(entry.flags());
        if !more {
            self.in_flight -= 1;
        }
        match kind {
            Kind::Accept => completion::accepted(value as u8, entry.result(), more),
            Kind::Receive => Some(self.received(self.key(value), entry, more)),
            Kind::Send => Some(self.sent(value as u32, entry.result())),
            Kind::Close => Some(Completion::Closed { key: self.key(value) }),
            Kind::Doorbell => {
                self.arm_doorbell();
                Some(Completion::Doorbell)
            }
            Kind::Tick => {
                self.arm_tick();
                Some(Completion::Tick)
            }
            Kind::Cancel => None,
        }
    }

    fn received(&mut self, key: SessionKey, entry: &cqueue::Entry, more: bool) -> Completion {
        let result = entry.result();
        let length = usize::try_from(result).unwrap_or(0);
        let chunk = Buffers::take(entry.flags(), length);
        if let Some(chunk) = chunk {
            if length > 0 {
                return Completion::Received { key, chunk, more };
            }
            self.recycle(chunk);
        }
        if result == -libc::ENOBUFS {
            self.counts.no_buffers += 1;
        }
        Completion::ReceiveEnded { key, end: ReceiveEnd::from_result(result) }
    }

    fn sent(&mut self, index: u32, result: i32) -> Completion {
        let key = self.memory.sends.remove(index);
        let result = match usize::try_from(result) {
            Ok(taken) => Ok(taken),
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => Ok(0),
            Err(_) => Err(-result),
        };
        Completion::Sent { key, result }
    }

    fn key(&self, value: u64) -> SessionKey {
        SessionKey::from_u64(value | (u64::from(self.shard.0) << 56))
    }

    /// Cancels all that is in flight and waits for it, up to [`QUIESCE_TIMEOUT`].
    fn quiesce(&mut self) {
        self.flush_backlog();
        let slice = Timespec::from(Duration::from_millis(50));
        let rounds = QUIESCE_TIMEOUT.as_millis() / 50;
        for _ in 0..rounds {
            if self.in_flight == 0 {
                return;
            }
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(cancel.user_data(user_data(Kind::Cancel, 0)));
            let _ = self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&slice));
            loop {
                self.copy_completions();
                if self.ready.is_empty() {
                    break;
                }
                while let Some(entry) = self.ready.pop_front() {
                    self.retire(&entry);
                }
            }
        }
    }

    fn retire(&mut self, entry: &cqueue::Entry) {
        if !cqueue::more(entry.flags()) {
            self.in_flight -= 1;
        }
        let (kind, _) = completion::parse(entry.user_data());
        if kind == Kind::Accept && entry.result() >= 0 {
            drop(completion::accepted(0, entry.result(), false));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.quiesce();
        // SAFETY: each is dropped once, here, and `self` is not used after. The ring goes first. Its memory follows
        // only when no operation that could use it is left; else it is leaked.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            if self.in_flight == 0 {
                ManuallyDrop::drop(&mut self.memory);
            }
        }
    }
}

fn strip_shard(key: SessionKey) -> u64 {
    key.to_u64() & (u64::MAX >> 8)
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME))
}
