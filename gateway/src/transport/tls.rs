//! TLS under either transport: records of the peer in, plain bytes out, and back. No socket.
//!
//! Between records a session keeps no buffer, only rustls's state of the connection.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError};

/// Longest record with its head (RFC 8446, 5.2; RFC 5246, 6.2.3).
const RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2048;

/// What one record adds to what it carries, at most: head, content type, tag, explicit nonce.
const RECORD_OVERHEAD: usize = 64;

/// Plain bytes of one record (RFC 8446, 5.1).
const FRAGMENT_BYTES: usize = 16 * 1024;

/// The records of one connection.
pub(crate) struct Tls {
    conn: UnbufferedServerConnection,
    /// Beginning of a record.
    incoming: Vec<u8>,
    /// Records of the handshake, and alerts, that no send carries yet.
    waiting: Vec<u8>,
    /// Records that a send carries, or their rest.
    sending: Bytes,
    /// Plain bytes of the send queue in `sending`; 0: none of them.
    plain_bytes: usize,
    /// The handshake is over.
    is_open: bool,
    /// On the shard's list of handshakes that are to go on.
    pub(crate) is_queued: bool,
    /// Of the records received last, those that carried bytes.
    carrying: usize,
    work: Work,
}

/// What received records cost, beside what they carry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Work {
    /// Records.
    pub(crate) records: usize,
    /// Of them without bytes, after the handshake: new keys, empty records. Nothing else would bound how many a peer sends.
    pub(crate) empty: usize,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("is_open", &self.is_open).finish_non_exhaustive()
    }
}

/// What received records come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// More may come.
    More,
    /// The peer says that it will send no more.
    Eof,
    /// No TLS, or not such as we speak; an alert that says so waits to be sent, if there is one.
    Failed,
}

impl Tls {
    /// A connection just accepted.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            conn: UnbufferedServerConnection::new(Arc::clone(config))?,
            incoming: Vec::new(),
            waiting: Vec::new(),
            sending: Bytes::new(),
            plain_bytes: 0,
            is_open: false,
            is_queued: false,
            carrying: 0,
            work: Work::default(),
        })
    }

    /// The handshake is over.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Bytes allocated beside rustls's own state.
    pub(crate) fn allocated(&self) -> usize {
        self.incoming.capacity() + self.waiting.capacity()
    }

    /// Keeps received bytes for a later [`Self::receive`]; `false`: more than any handshake needs.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> bool {
        self.incoming.extend_from_slice(bytes);
        self.incoming.len() <= 2 * RECORD_BYTES_MAX
    }

    /// Takes received bytes, behind those that are kept, and appends what they carry to `plain`.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Received {
        if self.incoming.is_empty() {
            let (taken, received) = self.process_counted(bytes, plain);
            self.incoming.extend_from_slice(&bytes[taken..]);
            return self.bounded(received);
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.extend_from_slice(bytes);
        let (taken, received) = self.process_counted(&mut incoming, plain);
        if taken < incoming.len() {
            incoming.drain(..taken);
            self.incoming = incoming;
        }
        self.bounded(received)
    }

    /// What was received since this was last asked.
    pub(crate) fn take_work(&mut self) -> Work {
        std::mem::take(&mut self.work)
    }

    fn process_counted(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> (usize, Received) {
        let (records, was_open) = (whole_records(bytes), self.is_open);
        self.carrying = 0;
        let result = self.process(bytes, plain);
        self.work.records += records;
        if was_open {
            self.work.empty += records.saturating_sub(self.carrying);
        }
        result
    }

    fn bounded(&self, received: Received) -> Received {
        if self.incoming.len() > RECORD_BYTES_MAX { Received::Failed } else { received }
    }

    /// How many of `bytes` are done with, and what they come to.
    fn process(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> (usize, Received) {
        let mut taken = 0;
        let mut received = Received::More;
        loop {
            let status = self.conn.process_tls_records(&mut bytes[taken..]);
            let mut discard = status.discard;
            let mut is_done = false;
            match status.state {
                // What is queued after an error is its alert, which comes out of the next round.
                Err(_) if received == Received::Failed => is_done = true,
                Err(_) => received = Received::Failed,
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        plain.extend_from_slice(record.payload);
                        self.carrying += usize::from(!record.payload.is_empty());
                        discard += record.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let start = self.waiting.len();
                    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                        self.waiting.resize(start + size.required_size, 0);
                        is_done = data.encode(&mut self.waiting[start..]).is_err();
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::WriteTraffic(_)) => (self.is_open, is_done) = (true, true),
                Ok(ConnectionState::PeerClosed) => (received, is_done) = (Received::Eof, true),
                Ok(_) => is_done = true,
            }
            taken += discard;
            if is_done {
                return (taken, received);
            }
        }
    }

    /// Records wait to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.sending.is_empty() || !self.waiting.is_empty()
    }

    /// What is to be sent before anything is encrypted; `None`: nothing.
    pub(crate) fn next_send(&mut self) -> Option<Bytes> {
        if self.sending.is_empty() {
            self.sending = std::mem::take(&mut self.waiting).into();
        }
        (!self.sending.is_empty()).then(|| self.sending.clone())
    }

    /// The records that carry `plain`, of which not a byte is empty, for the send that begins now; after it nothing follows
    /// when `is_last`. `None` when the keys are used up.
    pub(crate) fn encrypt(&mut self, plain: &[u8], is_last: bool) -> Option<Bytes> {
        // New keys, when the old ones are used up, are told before what they encrypt.
        self.process(&mut [], &mut Vec::new());
        let mut out = std::mem::take(&mut self.waiting);
        let mut end = out.len();
        let records = plain.len().div_ceil(FRAGMENT_BYTES) + usize::from(is_last);
        out.resize(end + plain.len() + records * RECORD_OVERHEAD, 0);
        let ConnectionState::WriteTraffic(mut traffic) = self.conn.process_tls_records(&mut []).state.ok()?
        else {
            return None;
        };
        end += match traffic.encrypt(plain, &mut out[end..]) {
            Ok(written) => written,
            Err(EncryptError::InsufficientSize(size)) => {
                out.resize(end + size.required_size + RECORD_OVERHEAD, 0);
                traffic.encrypt(plain, &mut out[end..]).ok()?
            }
            Err(EncryptError::EncryptExhausted) => return None,
        };
        if is_last {
            end += traffic.queue_close_notify(&mut out[end..]).unwrap_or(0);
        }
        out.truncate(end);
        self.sending = out.into();
        self.plain_bytes = plain.len();
        Some(self.sending.clone())
    }

    /// The socket took `bytes` of the last send. Gives the plain bytes that are wholly sent with them; `None`: none yet.
    pub(crate) fn sent(&mut self, bytes: usize) -> Option<usize> {
        self.sending.advance(bytes);
        if !self.sending.is_empty() || self.plain_bytes == 0 {
            return None;
        }
        Some(std::mem::take(&mut self.plain_bytes))
    }
}

/// Records that lie wholly in `bytes`, by their heads.
fn whole_records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some(&[_, _, _, high, low]) = bytes.first_chunk() {
        let Some(rest) = bytes.get(5 + usize::from(u16::from_be_bytes([high, low]))..) else { break };
        (count, bytes) = (count + 1, rest);
    }
    count
}

#[cfg(test)]
mod tests;
