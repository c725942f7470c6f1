//! One connection: its stream, what carries frames on it, and what is to be sent.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
};

use gimbal_codec::{Decoder, Packet};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{FRAME_BYTES_MAX, READ_BYTES};
use crate::{
    load::{quic::Quic, tls::Tls},
    websocket::Pipe,
};

/// What carries frames on a connection.
pub(super) enum Layer {
    /// The stream's own form.
    Frames,
    /// WebSocket.
    Messages(Box<Pipe>),
    /// Nothing: bytes are written as they are, and what comes is not looked at.
    Bare,
}

/// What is beneath all of it.
pub(super) enum Stream {
    /// A socket of its own.
    Tcp(TcpStream),
    /// To this address; [`Quic`] has it.
    Quic(SocketAddr),
}

pub(super) struct Conn {
    pub(super) stream: Stream,
    decoder: Decoder,
    layer: Layer,
    /// Beneath the layer.
    pub(super) tls: Option<Box<Tls>>,
    /// Bytes to send; those before `sent` are gone.
    pub(super) out: Vec<u8>,
    pub(super) sent: usize,
    /// In `Sockets::dirty`.
    pub(super) dirty: bool,
    /// The socket took less than it was given, or is not connected yet; epoll, or QUIC, says when it takes more.
    pub(super) blocked: bool,
    /// Nothing is read.
    pub(super) stalled: bool,
}

impl Conn {
    pub(super) fn new(
        stream: Stream,
        layer: Layer,
        tls: Option<Box<Tls>>,
        out: Vec<u8>,
        blocked: bool,
    ) -> Self {
        let decoder = Decoder::new();
        Self { stream, decoder, layer, tls, out, sent: 0, dirty: false, blocked, stalled: false }
    }

    /// The socket, if it is its own.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Tcp(stream) => Some(stream),
            Stream::Quic(_) => None,
        }
    }

    /// Has epoll tell what it waits for.
    pub(super) fn watch(&self, epoll: &OwnedFd, index: usize) {
        if let Stream::Tcp(stream) = &self.stream {
            // An error shows at the next read of the same socket.
            let _ = epoll::modify(epoll, stream, EventData::new_u64(index as u64), self.flags());
        }
    }

    pub(super) fn flags(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.stalled);
        flags.set(EventFlags::OUT, self.blocked);
        flags
    }

    /// Lets `write` append whole frames to what is sent.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if let (Layer::Frames | Layer::Bare, None) = (&self.layer, &self.tls) {
            return write(&mut self.out);
        }
        let (mut frames, mut messages) = (Vec::new(), Vec::new());
        write(&mut frames);
        if let Layer::Messages(pipe) = &mut self.layer {
            pipe.outgoing(&frames, &mut messages);
            frames = messages;
        }
        self.put_raw(&frames);
    }

    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            Some(tls) => tls.outgoing(bytes, &mut self.out),
            None => self.out.extend_from_slice(bytes),
        }
    }

    pub(super) fn send(&mut self, index: usize, quic: Option<&mut Quic>) {
        if self.out.is_empty() {
            self.blocked = false;
            return;
        }
        let left = &self.out[self.sent..];
        let taken = match (&mut self.stream, quic) {
            (Stream::Tcp(stream), _) => stream.write(left),
            (Stream::Quic(_), Some(quic)) => Ok(quic.write(index, left)),
            (Stream::Quic(_), None) => Ok(left.len()),
        };
        match taken {
            Ok(bytes) => self.sent += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.sent = self.out.len(), // the read side reports the broken connection
        }
        self.blocked = self.sent < self.out.len();
        if !self.blocked {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > READ_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// One read, and whether there was something; level-triggered epoll comes back when there is more.
    pub(super) fn receive(
        &mut self,
        index: usize,
        quic: Option<&mut Quic>,
        chunk: &mut [u8],
        each: &mut impl FnMut(Packet<'_>, &mut Vec<u8>),
    ) -> Result<bool, String> {
        let read = match (&mut self.stream, quic) {
            (Stream::Tcp(stream), _) => stream.read(chunk),
            (Stream::Quic(_), Some(quic)) => quic.read(index, chunk),
            (Stream::Quic(_), None) => Ok(0),
        };
        let bytes = match read {
            Ok(0) => return Err("closed by the server".into()),
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error.to_string()),
        };
        if let (Layer::Frames, None) = (&self.layer, &self.tls) {
            return take(&mut self.decoder, &chunk[..bytes], &mut self.out, each).map(|()| true);
        }
        let mut plain = Vec::new();
        let received = match &mut self.tls {
            Some(tls) => {
                tls.incoming(&chunk[..bytes], &mut plain)?;
                &plain[..]
            }
            None => &chunk[..bytes],
        };
        let (mut frames, mut answers, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        match &mut self.layer {
            Layer::Bare => {}
            Layer::Frames => take(&mut self.decoder, received, &mut replies, each)?,
            Layer::Messages(pipe) => {
                pipe.incoming(received, &mut frames, &mut replies).map_err(|error| error.to_string())?;
                take(&mut self.decoder, &frames, &mut answers, each)?;
                pipe.outgoing(&answers, &mut replies);
            }
        }
        self.put_raw(&replies);
        Ok(true)
    }
}

/// Gives every frame that ends in `chunk` to `each`.
fn take(
    decoder: &mut Decoder,
    chunk: &[u8],
    out: &mut Vec<u8>,
    each: &mut impl FnMut(Packet<'_>, &mut Vec<u8>),
) -> Result<(), String> {
    let mut feed = decoder.feed(chunk);
    loop {
        match feed.next_frame(FRAME_BYTES_MAX) {
            Ok(Some(body)) => each(Packet::decode(body).map_err(|error| error.to_string())?, out),
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
