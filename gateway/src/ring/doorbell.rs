//! How another thread wakes a shard that sleeps in its ring: an eventfd whose read is armed there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Shared between one shard and all who give it work.
pub(crate) struct Doorbell {
    eventfd: File,
    asleep: AtomicBool,
    rings: AtomicU64,
}

impl Doorbell {
    /// A doorbell nobody sleeps behind yet.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when no descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed; the result is checked and then owned by `OwnedFd` alone.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { eventfd: eventfd.into(), asleep: AtomicBool::new(false), rings: AtomicU64::new(0) })
    }

    /// Called after work was queued. Costs one system call when the shard sleeps, for the first caller only.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `fall_asleep`: either the shard sees the work, or we see it asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.rings.fetch_add(1, Ordering::Relaxed);
            #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in host order")]
            let one = 1u64.to_ne_bytes();
            let _ =
                (&self.eventfd).write(&one).expect("an eventfd takes eight bytes until its counter is full");
        }
    }

    /// Called by the shard before it looks at its inbox for the last time and waits.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the shard when it goes on.
    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// How often it was rung.
    pub(crate) fn rings(&self) -> u64 {
        self.rings.load(Ordering::Relaxed)
    }

    /// For those who wait in poll(2): readable once it was rung, until it is silenced.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Takes the rings that made it readable.
    pub(crate) fn silence(&self) {
        let _ = (&self.eventfd).read(&mut [0; 8]).expect("an eventfd that is readable gives eight bytes");
    }

    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}
