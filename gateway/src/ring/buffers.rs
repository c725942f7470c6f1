//! Receive buffers that all connections of a shard share: one arena, lent to the kernel through a buffer ring.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue};

/// The only buffer group of a shard's ring.
pub(super) const GROUP: u16 = 0;

/// Buffers of one shard, each given back before the next completion is looked at: enough for what arrives between two
/// turns. When all are taken receives end, are counted, and then take one buffer each in turn.
pub(super) const COUNT: u16 = 1024;

/// Bytes of one buffer: several small frames; a longer frame arrives in pieces.
pub(super) const BUFFER_BYTES: usize = 2048;

const PAGE_BYTES: usize = 4096;

const _: () = assert!(COUNT.is_power_of_two() && COUNT <= 32768, "io_uring_register_buf_ring(3)");

/// Bytes the kernel has written for one receive. Whoever has it owns that buffer; it goes back by [`Buffers::recycle`].
#[derive(Debug)]
#[must_use = "a chunk that is not recycled is lost to the ring"]
pub(crate) struct Chunk {
    pub(super) buffer: u16,
    pub(super) length: usize,
}

impl Chunk {
    /// The kernel may have more of the same stream.
    pub(super) fn is_full(&self) -> bool {
        self.length == BUFFER_BYTES
    }
}

/// The arena and the ring of lent buffers.
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    arena: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    fn entries_layout() -> Layout {
        Layout::from_size_align(size_of::<BufRingEntry>() * COUNT as usize, PAGE_BYTES)
            .expect("small and aligned")
    }

    fn arena_layout() -> Layout {
        Layout::from_size_align(BUFFER_BYTES * COUNT as usize, PAGE_BYTES).expect("small and aligned")
    }

    /// Allocates the arena and lends all of it to `uring`.
    ///
    /// # Errors
    /// What `IORING_REGISTER_PBUF_RING` says: `EINVAL` before kernel 5.19, `ENOMEM` at the memlock limit.
    pub(super) fn register(uring: &IoUring) -> io::Result<Self> {
        let allocate = |layout: Layout| {
            // SAFETY: both layouts have a size above zero.
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
        };
        let mut buffers = Self {
            entries: allocate(Self::entries_layout()).cast(),
            arena: allocate(Self::arena_layout()),
            tail: 0,
        };
        // SAFETY: `entries` is page aligned, has COUNT entries, and is freed only after the ring that knows it is gone
        // or has no operation in flight (see `Ring::drop`).
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                buffers.entries.as_ptr() as u64,
                COUNT,
                GROUP,
                0,
            )?;
        }
        for buffer in 0..COUNT {
            buffers.lend(buffer);
        }
        Ok(buffers)
    }

    /// Takes the chunk that a receive completion with `flags` and `length` carries, if it carries one.
    pub(super) fn take(flags: u32, length: usize) -> Option<Chunk> {
        let buffer = cqueue::buffer_select(flags)?;
        assert!(
            buffer < COUNT && length <= BUFFER_BYTES,
            "the kernel named buffer {buffer} with {length} bytes"
        );
        Some(Chunk { buffer, length })
    }

    /// What was received.
    pub(super) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        // SAFETY: a `Chunk` exists only between the completion that named its buffer and `recycle`; in that time the
        // kernel does not write to it. Its bounds were checked in `take`, and the arena lives as long as `self`.
        unsafe {
            let start = self.arena.as_ptr().add(usize::from(chunk.buffer) * BUFFER_BYTES);
            std::slice::from_raw_parts(start, chunk.length)
        }
    }

    /// What was received, for its owner to work in.
    pub(super) fn bytes_mut(&mut self, chunk: &mut Chunk) -> &mut [u8] {
        // SAFETY: a `Chunk` exists only between the completion that named its buffer and `recycle`; in that time the
        // kernel does not touch it, and both borrows are exclusive. Its bounds were checked in `take`, and the arena lives
        // as long as `self`.
        unsafe {
            let start = self.arena.as_ptr().add(usize::from(chunk.buffer) * BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, chunk.length)
        }
    }

    /// Lends the buffer to the kernel again.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        self.lend(chunk.buffer);
    }

    fn lend(&mut self, buffer: u16) {
        let slot = usize::from(self.tail & (COUNT - 1));
        // SAFETY: `slot` is below COUNT, and the kernel reads an entry only once the tail has passed it. `buffer` was
        // never lent or came back with its completion, so nobody else knows its memory. The tail overlays the reserved
        // field of entry 0 and is written as an atomic because the kernel reads it at any time; `set_addr`, `set_len`
        // and `set_bid` do not touch that field.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(self.arena.as_ptr().add(usize::from(buffer) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut().cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with these layouts; the owner drops this only when no operation is in flight.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), Self::entries_layout());
            dealloc(self.arena.as_ptr(), Self::arena_layout());
        }
    }
}
