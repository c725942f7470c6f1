//! Setting a ring up: the best flags this kernel takes, and words for what it refuses.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::buffers::{self, Buffers};

/// Entries that wait for one `io_uring_enter`: a turn's sends go out in one call.
const SUBMISSIONS: u32 = 1024;

/// Completions that wait for the shard. More are kept by the kernel (NODROP) at a cost.
const COMPLETIONS: u32 = 8192;

/// A probe's ring needs little memory.
const PROBE_ENTRIES: u32 = 8;

/// On loopback everything a probe waits for is there at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a ring runs its completions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Kernel 6.1: only when the shard asks, on its own thread.
    Deferred,
    /// Kernel 5.19: at the shard's next system call.
    Cooperative,
    /// Whenever the kernel likes; costs up to a third more.
    Plain,
}

impl Mode {
    /// As `gimbal doctor` names it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Deferred => "SINGLE_ISSUER | DEFER_TASKRUN",
            Self::Cooperative => "COOP_TASKRUN",
            Self::Plain => "no flags",
        }
    }
}

/// A ring for the calling thread, in the best mode the kernel takes.
///
/// # Errors
/// `io_uring_setup`'s own; see [`explain`].
pub(super) fn build() -> io::Result<(IoUring, Mode)> {
    build_sized(SUBMISSIONS, COMPLETIONS)
}

fn build_sized(submissions: u32, completions: u32) -> io::Result<(IoUring, Mode)> {
    let mut refused = None;
    for mode in [Mode::Deferred, Mode::Cooperative, Mode::Plain] {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions).setup_clamp().dontfork();
        match mode {
            Mode::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Mode::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Mode::Plain => {}
        }
        match builder.build(submissions) {
            Ok(uring) => return Ok((uring, mode)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.expect("every mode was refused with EINVAL"))
}

/// What was tried on this machine.
pub(crate) struct Tried {
    pub(crate) mode: Mode,
    pub(crate) buffers: io::Result<()>,
    pub(crate) accept: io::Result<()>,
    pub(crate) receive: io::Result<()>,
}

/// Sets a small ring up and tries what a shard needs of it, with a connection to itself on loopback.
///
/// # Errors
/// When there is no ring, or no loopback to try it on.
pub(crate) fn try_all() -> io::Result<Tried> {
    let (mut uring, mode) = build_sized(PROBE_ENTRIES, PROBE_ENTRIES)?;
    let buffers = Buffers::register(&uring);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
    let accepted = run_one(&mut uring, &accept)?;
    let socket = completed(accepted).map(|fd| {
        // SAFETY: the kernel has just made this descriptor for us, and this completion is its only mention.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    let receive = match (&socket, &buffers) {
        (Ok(socket), Ok(_)) => {
            client.write_all(b"probe")?;
            let receive = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), buffers::GROUP).build();
            completed(run_one(&mut uring, &receive)?).map(drop)
        }
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    // The multishot operations end with the ring; until then nothing arrives that could touch the buffers.
    drop((client, listener));
    let buffers = buffers.map(|buffers| {
        drop(uring);
        std::mem::forget(buffers);
    });
    Ok(Tried { mode, buffers, accept: socket.map(drop), receive })
}

/// Result of the first completion of `entry`.
fn run_one(uring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: the entries above name descriptors and a buffer group, no memory of ours but the registered arena, which
    // outlives the ring.
    unsafe { uring.submission().push(entry) }.expect("an empty queue has room");
    let deadline = Timespec::from(PROBE_TIMEOUT);
    uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&deadline))?;
    let completion = uring.completion().next();
    completion.map(|completion| completion.result()).ok_or_else(|| io::ErrorKind::TimedOut.into())
}

fn completed(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// What an error of setting a ring up means, and what to do.
pub(crate) fn explain(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "the kernel has no io_uring, or a seccomp profile hides it: use Linux 6.1 or newer, and in a container a \
             seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here: set sysctl kernel.io_uring_disabled=0, or allow io_uring_setup, io_uring_enter \
             and io_uring_register in the container's seccomp profile"
        }
        Some(libc::ENOMEM) => {
            "the memory for the ring may not be locked: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the systemd unit, \
             ulimit -l in a shell) to 8 MiB or more; all processes of one user share it"
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "no file descriptor is left: raise RLIMIT_NOFILE (LimitNOFILE= in the systemd unit, ulimit -n in a shell)"
        }
        Some(libc::EINVAL) => "the kernel is too old for what the gateway needs: use Linux 6.1 or newer",
        _ => "unexpected; run `gimbal doctor`",
    }
}
