//! The writing half: frames in, bytes out, and a heartbeat when nothing else was written for a while.

use std::{io, time::Duration};

use bytes::Bytes;
use gimbal_codec::{Command, frame};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{SharedPipe, lock};

/// Frames joined into one write.
const JOINED_MAX: usize = 64;
/// Shortest time between two heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
/// Heartbeats that nobody needs: a year.
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// Request id of heartbeats that the writer sends by itself; their echo is dropped.
pub(super) const HEARTBEAT_ID: &str = "heartbeat";

/// Where bytes go.
pub(super) type Half = Box<dyn AsyncWrite + Send + Unpin>;

pub(super) struct Writer {
    half: Half,
    joined: Vec<u8>,
    pipe: Option<SharedPipe>,
}

impl Writer {
    pub(super) fn new(half: Half, pipe: Option<SharedPipe>) -> Self {
        Self { half, joined: Vec::new(), pipe }
    }

    pub(super) async fn write_as_is(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.half.write_all(bytes).await
    }

    /// Writes whole frames.
    pub(super) async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return self.half.write_all(frames).await };
        let mut messages = Vec::new();
        lock(pipe).outgoing(frames, &mut messages);
        self.half.write_all(&messages).await
    }

    /// Ends when all clients are dropped or the socket breaks; the reader then sees the end of the connection.
    pub(super) async fn run(mut self, mut frames: mpsc::Receiver<Bytes>, heartbeat: Option<Duration>) {
        let quiet = heartbeat.unwrap_or(NEVER).max(HEARTBEAT_MIN);
        let mut batch: Vec<Bytes> = Vec::with_capacity(JOINED_MAX);
        loop {
            batch.clear();
            match timeout(quiet, frames.recv_many(&mut batch, JOINED_MAX)).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => batch.push(frame(Command::Heartbeat, HEARTBEAT_ID, 0, &())),
            }
            let mut joined = std::mem::take(&mut self.joined);
            joined.clear();
            batch.iter().for_each(|frame| joined.extend_from_slice(frame));
            let written = self.write(&joined).await;
            self.joined = joined;
            if written.is_err() {
                // The reader learns the reason; give it the time to pass on what came before.
                frames.close();
                sleep(HEARTBEAT_MIN).await;
                return;
            }
        }
        let _ = self.half.shutdown().await;
    }
}
