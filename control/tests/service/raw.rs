//! HTTP/2 by hand (RFC 9113), for what no honest client sends.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::rig::WAIT;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// A connection that sends what it is told to.
pub(super) struct Raw {
    socket: TcpStream,
}

impl Raw {
    /// Connected, and nothing sent.
    pub(super) async fn silent(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap() }
    }

    /// With preface and settings sent.
    pub(super) async fn open(address: SocketAddr) -> Self {
        let mut raw = Self::silent(address).await;
        raw.send(PREFACE).await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        raw
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        timeout(WAIT, self.socket.write_all(bytes)).await.expect("the server reads or closes")
    }

    /// As [`Self::send`], for whoever has a patience of its own.
    pub(super) async fn send_unbounded(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// The next frame; `None` at the end of the connection, however it came.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(WAIT, self.socket.read_exact(&mut head)).await.expect("a frame in time");
        read.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        timeout(WAIT, self.socket.read_exact(&mut payload)).await.expect("the frame in time").ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    }

    /// Reads to the end and returns the error codes of the farewells.
    pub(super) async fn farewells(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                codes.push(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        codes
    }

    /// The head of the answer on `stream`, as bytes of its header block.
    pub(super) async fn answer(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM) {
                return Some(frame);
            }
        }
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Header fields as HPACK literals that no table remembers (RFC 7541, 6.2.2), names and values below 127 bytes.
pub(super) fn fields(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in pairs {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.bytes());
        assert!(value.len() < 127, "one byte of length");
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.bytes());
    }
    block
}

/// The head of a call.
pub(super) fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut pairs = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    pairs.extend(more);
    fields(&pairs)
}

pub(super) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL)
}
