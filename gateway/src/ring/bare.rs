//! The bound beside a gateway's heartbeats: a ring that echoes bytes and knows nothing of frames, sessions or time.

use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode};
use socket2::SockRef;

use super::buffers::{self, Buffers, Chunk};
use super::setup;

/// What completed; the top 8 bits of its `user_data`. The rest is the descriptor, or what [`pack`] says.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;

/// The ring and the buffers it receives into and sends from.
struct Echo {
    listener: TcpListener,
    uring: IoUring,
    buffers: Buffers,
}

/// Sends back whatever arrives on connections to `listener`, straight from the buffer it was received into, on one ring
/// that is set up as a shard's is. It answers no half of a send, bounds nothing and never ends by itself: something to
/// measure against, not something to serve with.
///
/// # Errors
/// What `io_uring_setup` or `io_uring_enter` says, and a socket that takes only part of an answer.
pub fn echo(listener: TcpListener) -> io::Result<Infallible> {
    SockRef::from(&listener).set_tcp_nodelay(true)?; // connections inherit it
    let (uring, _mode) = setup::build()?;
    let buffers = Buffers::register(&uring)?;
    // Not dropped when it ends with an error: operations may still be in flight, and the process ends with it.
    ManuallyDrop::new(Echo { listener, uring, buffers }).run()
}

impl Echo {
    fn run(&mut self) -> io::Result<Infallible> {
        self.accept()?;
        let mut arrived: Vec<cqueue::Entry> = Vec::new();
        loop {
            match self.uring.submit_and_wait(1) {
                Err(error) if !super::is_transient(&error) => return Err(error),
                _ => {}
            }
            arrived.extend(self.uring.completion());
            for entry in arrived.drain(..) {
                self.complete(&entry)?;
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        let fd = entry.user_data() as u32 as RawFd;
        match entry.user_data() >> 56 {
            ACCEPT => {
                if result >= 0 {
                    self.receive(result)?;
                }
                if more { Ok(()) } else { self.accept() }
            }
            RECEIVE => self.received(fd, entry, more),
            _ => {
                let (buffer, length) = unpack(entry.user_data());
                let sent = usize::try_from(result).ok();
                self.buffers.recycle(Chunk { buffer, length });
                match sent {
                    Some(sent) if sent < length => Err(io::ErrorKind::WriteZero.into()),
                    _ => Ok(()), // a broken socket shows at its receive
                }
            }
        }
    }

    fn received(&mut self, fd: RawFd, entry: &cqueue::Entry, more: bool) -> io::Result<()> {
        let length = usize::try_from(entry.result()).unwrap_or(0);
        if let Some(chunk) = Buffers::take(entry.flags(), length) {
            if length == 0 {
                self.buffers.recycle(chunk);
            } else {
                self.send(fd, &chunk)?;
            }
        }
        match entry.result() {
            _ if more => Ok(()),
            result if result > 0 || result == -libc::ENOBUFS => self.receive(fd),
            _ => {
                // SAFETY: the accept gave this descriptor to us, and its receive, the only thing that goes on naming it,
                // has just ended.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
                Ok(())
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build();
        self.push(&entry.user_data(ACCEPT << 56))
    }

    fn receive(&mut self, fd: RawFd) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(fd), buffers::GROUP).build();
        self.push(&entry.user_data((RECEIVE << 56) | u64::from(fd as u32)))
    }

    fn send(&mut self, fd: RawFd, chunk: &Chunk) -> io::Result<()> {
        let bytes = self.buffers.bytes(chunk);
        let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(&entry.user_data(pack(chunk)))
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        if self.uring.submission().is_full() {
            self.uring.submit()?;
        }
        // SAFETY: an entry names no memory but a received chunk, which is lent to the kernel again only after the send of
        // it has completed; the arena is never freed (see `echo`).
        unsafe { self.uring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }
}

/// `user_data` of a send: kind, 24 bits length, 16 bits buffer.
fn pack(chunk: &Chunk) -> u64 {
    (SEND << 56) | ((chunk.length as u64) << 16) | u64::from(chunk.buffer)
}

fn unpack(user_data: u64) -> (u16, usize) {
    (user_data as u16, (user_data >> 16) as usize & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn bytes_come_back_as_they_went_on_every_connection() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || echo(listener));
        let mut streams: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        for round in 0..5000u32 {
            for stream in &mut streams {
                stream.write_all(&round.to_be_bytes()).unwrap();
            }
            for stream in &mut streams {
                let mut back = [0; 4];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(u32::from_be_bytes(back), round, "more rounds than there are buffers");
            }
        }
        drop(streams);
        let mut later = TcpStream::connect(address).unwrap();
        later.write_all(b"x").unwrap();
        later.read_exact(&mut [0]).unwrap();
    }
}
