//! The ring as a carrier: streams of the kernel.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use gimbal_codec::{CloseReason, SessionKey};

use super::{Chunk, Completion, Ring};
use crate::carrier::Carrier;
use crate::metrics::{ShardMetrics, Total};
use crate::transport::tcp;

impl Carrier for Ring {
    type Socket = OwnedFd;
    type Chunk = Chunk;
    type Listener = TcpListener;

    #[inline]
    fn accept(&mut self, index: u8, listener: &TcpListener) {
        Self::accept(self, index, listener.as_fd());
    }

    #[inline]
    fn cancel_accept(&mut self, index: u8) {
        Self::cancel_accept(self, index);
    }

    fn refuse(&mut self, socket: OwnedFd) {
        drop(socket);
    }

    fn peer(&self, socket: &OwnedFd) -> Option<SocketAddr> {
        tcp::peer(socket)
    }

    #[inline]
    fn receive(&mut self, key: SessionKey, socket: &OwnedFd) {
        Self::receive(self, key, socket.as_fd());
    }

    #[inline]
    fn receive_once(&mut self, key: SessionKey, socket: &OwnedFd) {
        Self::receive_once(self, key, socket.as_fd());
    }

    fn is_full(&self, chunk: &Chunk) -> bool {
        chunk.is_full()
    }

    #[inline]
    fn send(&mut self, key: SessionKey, socket: &OwnedFd, bytes: Bytes) {
        Self::send(self, key, socket.as_fd(), bytes);
    }

    #[inline]
    fn closing(&mut self, _socket: &OwnedFd, _reason: CloseReason) {}

    fn shutdown_write(&mut self, socket: &OwnedFd) {
        tcp::shutdown_write(socket);
    }

    fn shutdown_both(&mut self, socket: &OwnedFd, reset: bool) {
        tcp::shutdown_both(socket, reset);
    }

    #[inline]
    fn close(&mut self, key: SessionKey, socket: OwnedFd) {
        Self::close(self, key, socket);
    }

    #[inline]
    fn enter(&mut self, wait: bool) -> io::Result<()> {
        Self::enter(self, wait)
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        Self::next(self)
    }

    #[inline]
    fn has_completions(&mut self) -> bool {
        Self::has_completions(self)
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, chunk: &'a mut Chunk) -> &'a mut [u8] {
        Self::bytes_mut(self, chunk)
    }

    #[inline]
    fn recycle(&mut self, chunk: Chunk) {
        Self::recycle(self, chunk);
    }

    #[inline]
    fn sends_in_flight(&self, out: &mut Vec<SessionKey>) {
        Self::sends_in_flight(self, out);
    }

    fn held_bytes(&self) -> u64 {
        0
    }

    fn publish(&self, metrics: &ShardMetrics) {
        let counts = self.counts();
        metrics.set_total(Total::Enters, counts.enters);
        metrics.set_total(Total::Sends, counts.sends);
        metrics.set_total(Total::NoBuffers, counts.no_buffers);
    }
}
