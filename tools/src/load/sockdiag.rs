//! What the kernel holds for the TCP sockets of a port, one by one (sock_diag(7)); what `ss -tm` shows.

use std::io::{self, Read as _};

use socket2::{Domain, Protocol, Socket, Type};

/// Of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_SKMEMINFO: u16 = 7;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
/// Every state but LISTEN and TIME_WAIT: the others hold no buffers.
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 6);

/// Bytes of `nlmsghdr`, and of `inet_diag_msg` behind it.
const HEAD_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 72;
/// Longest answer read at once; the kernel fills at most 32 KiB.
const ANSWER_BYTES: usize = 64 * 1024;

/// One socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Port at this end.
    pub local_port: u16,
    /// Port at the other end.
    pub peer_port: u16,
    /// Bytes sent that the peer has not acknowledged, and bytes not yet sent.
    pub unsent_bytes: u32,
    /// Memory of the send queue, bookkeeping included, bytes (`SK_MEMINFO_WMEM_QUEUED`).
    pub send_bytes: u32,
    /// Memory of what has come and was not taken, likewise (`SK_MEMINFO_RMEM_ALLOC`).
    pub receive_bytes: u32,
}

/// All IPv4 sockets of this network namespace with local port `port`.
///
/// # Errors
/// When the kernel does not answer so.
pub fn sockets_of(port: u16) -> io::Result<Vec<Held>> {
    let kind = (Domain::from(AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)));
    let mut socket = Socket::new(kind.0, kind.1, kind.2)?;
    socket.send(&request())?;
    let (mut answer, mut found) = (vec![0; ANSWER_BYTES], Vec::new());
    loop {
        let bytes = socket.read(&mut answer)?;
        if !take(&answer[..bytes], port, &mut found)? {
            return Ok(found);
        }
    }
}

/// `inet_diag_req_v2`: every TCP socket over IPv4, with its memory.
#[expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's own order")]
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 56);
    bytes.extend(72u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([AF_INET, IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(72, 0);
    bytes
}

/// The sockets of one answer; `false`: it was the last one.
fn take(mut answer: &[u8], port: u16, found: &mut Vec<Held>) -> io::Result<bool> {
    let torn = || io::Error::other("an answer of sock_diag is torn");
    while !answer.is_empty() {
        let length = number32(answer, 0).ok_or_else(torn)? as usize;
        let message = answer.get(..length).filter(|message| message.len() >= HEAD_BYTES).ok_or_else(torn)?;
        match number16(message, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => return Err(io::Error::other("sock_diag refuses")),
            _ => found.extend(socket(&message[HEAD_BYTES..]).filter(|held| held.local_port == port)),
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// `inet_diag_msg` and its attributes.
fn socket(message: &[u8]) -> Option<Held> {
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let mut held = Held {
        local_port: port(4)?,
        peer_port: port(6)?,
        unsent_bytes: number32(message, 60)?,
        send_bytes: 0,
        receive_bytes: 0,
    };
    let mut attributes = message.get(MESSAGE_BYTES..)?;
    while attributes.len() >= 4 {
        let length = usize::from(number16(attributes, 0)?);
        if number16(attributes, 2)? == INET_DIAG_SKMEMINFO {
            held.receive_bytes = number32(attributes, 4)?;
            held.send_bytes = number32(attributes, 4 + 5 * 4)?;
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(held)
}

#[expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's own order")]
fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's own order")]
fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
    };

    #[test]
    fn bytes_that_nobody_reads_are_found_at_both_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while server.write(&[7; 64 * 1024]).is_ok() {}
        let found = sockets_of(port).unwrap();
        assert_eq!(found.len(), 1, "the listener is none of them: {found:?}");
        assert_eq!((found[0].local_port, found[0].peer_port), (port, from.port()));
        assert!(found[0].send_bytes >= found[0].unsent_bytes && found[0].unsent_bytes > 4096, "{found:?}");
        let other = sockets_of(from.port()).unwrap();
        assert!(other[0].receive_bytes > 4096, "{other:?}");
        drop(client);
    }

    #[test]
    fn a_torn_answer_is_an_error() {
        for torn in [&[1, 2][..], &[99, 0, 0, 0, 20, 0][..]] {
            assert!(take(torn, 1, &mut Vec::new()).is_err());
        }
    }
}
