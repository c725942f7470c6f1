//! The UDP socket: many datagrams in one system call, with the addresses they came to.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ring::Doorbell;

/// Messages taken in one system call; each may hold the datagrams of one sender that came together.
const MESSAGES: usize = 8;

/// Longest message, in bytes.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Datagrams of one message: as many as the kernel joins (UDP_GRO).
const MESSAGE_DATAGRAMS_MAX: usize = 64;

/// Datagrams of one [`Udp::receive`], at most.
pub(super) const BATCH_DATAGRAMS_MAX: usize = MESSAGES * MESSAGE_DATAGRAMS_MAX;

/// What the kernel is asked to keep for us, in bytes; it gives as much as it allows (`net.core.rmem_max`). A burst of handshakes
/// has to fit.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Datagrams handed to the kernel in one system call, at most.
pub(super) const SEGMENTS_MAX: usize = 10;

/// One datagram and where it came from.
pub(super) struct Received<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) from: SocketAddr,
    pub(super) to: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
}

/// One socket, never blocking.
pub(super) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// [`MESSAGES`] times [`MESSAGE_BYTES`].
    buffer: Vec<u8>,
    metas: [RecvMeta; MESSAGES],
    /// Of `metas`, those that hold something.
    count: usize,
    /// What the kernel did not take.
    kept: Option<(Transmit, Vec<u8>)>,
    sends: u64,
}

/// A socket on `address`.
///
/// # Errors
/// As bind(2).
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // The kernel's own bound is enough for a start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Udp {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self {
            socket,
            state,
            buffer: vec![0; MESSAGES * MESSAGE_BYTES],
            metas: [RecvMeta::default(); MESSAGES],
            count: 0,
            kept: None,
            sends: 0,
        })
    }

    /// Datagrams may be cut into parts on their way, so their size tells nothing about the path.
    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Datagrams that may be handed to the kernel at once.
    pub(super) fn segments_max(&self) -> usize {
        self.state.max_gso_segments().min(SEGMENTS_MAX)
    }

    /// System calls that sent something.
    pub(super) fn sends(&self) -> u64 {
        self.sends
    }

    /// The kernel took something only in part: nothing more until it takes the rest.
    pub(super) fn is_blocked(&self) -> bool {
        self.kept.is_some()
    }

    /// Takes what the kernel has; `false`: nothing. Then [`Self::received`] has it.
    pub(super) fn receive(&mut self) -> bool {
        let mut chunks = self.buffer.chunks_mut(MESSAGE_BYTES);
        let mut slices: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        // Errors are of datagrams that were sent before (ICMP), and of no interest here: quinn's timers see to what is lost.
        let received = self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut self.metas);
        self.count = received.unwrap_or(0);
        self.count > 0
    }

    /// Datagrams of the last [`Self::receive`], in order.
    pub(super) fn received(&self) -> impl Iterator<Item = Received<'_>> {
        let messages = self.metas[..self.count].iter().zip(self.buffer.chunks(MESSAGE_BYTES));
        messages.flat_map(|(meta, bytes)| {
            let bytes = &bytes[..meta.len.min(bytes.len())];
            bytes.chunks(meta.stride.max(1)).map(|bytes| Received {
                bytes,
                from: meta.addr,
                to: meta.dst_ip,
                ecn: meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
            })
        })
    }

    /// Sends the datagrams of `transmit`, which `bytes` begins with; what the kernel has no room for is kept, and from then on
    /// [`Self::is_blocked`]. What is sent while it is blocked, or is refused for another reason, is lost, as in the network.
    pub(super) fn send(&mut self, transmit: Transmit, bytes: &[u8]) {
        let bytes = &bytes[..transmit.size];
        if !self.is_blocked() && !self.try_send(&transmit, bytes) {
            self.kept = Some((transmit, bytes.to_vec()));
        }
    }

    /// Sends what was kept, if there is room now.
    pub(super) fn send_kept(&mut self) {
        if let Some((transmit, bytes)) = self.kept.take()
            && !self.try_send(&transmit, &bytes)
        {
            self.kept = Some((transmit, bytes));
        }
    }

    /// Sleeps until something can be received or, if so wished, sent, the doorbell rings, or `timeout` is over.
    ///
    /// # Errors
    /// As poll(2), interruptions aside.
    pub(super) fn wait(&self, doorbell: &Doorbell, timeout: Duration) -> io::Result<()> {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, self.is_blocked());
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), wanted),
            PollFd::from_borrowed_fd(doorbell.as_fd(), PollFlags::IN),
        ];
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            doorbell.silence();
        }
        Ok(())
    }

    /// `false`: the kernel has no room.
    fn try_send(&mut self, transmit: &Transmit, bytes: &[u8]) -> bool {
        let message = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: bytes,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        self.sends += 1;
        match self.state.send(UdpSockRef::from(&self.socket), &message) {
            Err(error) => error.kind() != ErrorKind::WouldBlock,
            Ok(()) => true,
        }
    }
}
