//! Plain TCP: the listeners, and what a socket is told at its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// What waits for one socket is joined up to this size for one send; longer frames go alone. One that reads all the time is
/// then never far behind, and a copy stays small.
const JOIN_BYTES_MAX: usize = 16 * 1024;

/// The same where more waits than four such sends would take: as much as an empty socket takes at once.
const JOIN_BYTES_MAX_LATE: usize = 64 * 1024;

/// How much is joined for one send when this much waits, in bytes.
pub(crate) fn join_bytes_max(queue_bytes: usize) -> usize {
    if queue_bytes > 4 * JOIN_BYTES_MAX { JOIN_BYTES_MAX_LATE } else { JOIN_BYTES_MAX }
}

/// A peer that acknowledges nothing of what was sent for so long is gone (tcp(7), TCP_USER_TIMEOUT).
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A silent peer is probed after this, so that a vanished one frees its socket even with a long idle deadline.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How listeners are made; connections inherit all of it, so that none needs a system call of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenOptions {
    pub(crate) address: SocketAddr,
    /// Listeners on that address, one for each shard; the kernel spreads connections over them.
    pub(crate) count: u8,
    pub(crate) backlog: u32,
    pub(crate) socket_send_bytes: usize,
}

/// Binds all listeners. With port 0 the first takes a free port and the others share it.
///
/// # Errors
/// As bind(2) and listen(2): `EADDRINUSE` when another process listens there, also one with SO_REUSEPORT.
pub(crate) fn listen(options: &ListenOptions) -> io::Result<Vec<TcpListener>> {
    probe_free(options.address)?;
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(options.count.into());
    for _ in 0..options.count {
        let address = match listeners.first() {
            Some(first) => first.local_addr()?,
            None => options.address,
        };
        listeners.push(listen_one(address, options)?);
    }
    Ok(listeners)
}

/// SO_REUSEPORT would let a second gateway of the same user share the port in silence: a bind without it tells.
fn probe_free(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

fn listen_one(address: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(options.socket_send_bytes)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(4),
    )?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Says that no more will be sent. A socket that is broken already needs no telling.
pub(crate) fn shutdown_write(socket: &OwnedFd) {
    let _ = SockRef::from(&socket.as_fd()).shutdown(std::net::Shutdown::Write);
}

/// Ends both directions, which ends every operation in flight. With `reset` the kernel throws away what it has not sent.
pub(crate) fn shutdown_both(socket: &OwnedFd, reset: bool) {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    if reset {
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

/// The peer's address; `None` when the connection is gone already.
pub(crate) fn peer(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(&socket.as_fd()).peer_addr().ok()?.as_socket()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(address: SocketAddr, count: u8) -> ListenOptions {
        ListenOptions { address, count, backlog: 16, socket_send_bytes: 16_384 }
    }

    #[test]
    fn listeners_share_a_free_port() {
        let listeners = listen(&options(SocketAddr::from(([127, 0, 0, 1], 0)), 3)).unwrap();
        let ports: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert!(ports.len() == 3 && ports[0] != 0 && ports.iter().all(|port| *port == ports[0]));
    }

    #[test]
    fn a_busy_port_is_an_error_even_when_its_owner_would_share_it() {
        let first = listen(&options(SocketAddr::from(([127, 0, 0, 1], 0)), 1)).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(listen(&options(address, 1)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
