//! The writing half: frames in, bytes out, and a heartbeat when nothing else was written for a while.

use std::{io, time::Duration};

use bytes::Bytes;
use gimbal_codec::{Command, frame};
use tokio::{
    io::AsyncWriteExt as _,
    net::tcp::OwnedWriteHalf,
    sync::mpsc,
    time::{sleep, timeout},
};

/// Frames joined into one write.
const JOINED_MAX: usize = 64;
/// Shortest time between two heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
/// Heartbeats that nobody needs: a year.
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// Request id of heartbeats that the writer sends by itself; their echo is dropped.
pub(super) const HEARTBEAT_ID: &str = "heartbeat";

pub(super) struct Writer {
    half: OwnedWriteHalf,
    joined: Vec<u8>,
}

impl Writer {
    pub(super) const fn new(half: OwnedWriteHalf) -> Self {
        Self { half, joined: Vec::new() }
    }

    pub(super) async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.half.write_all(frame).await
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
            self.joined.clear();
            batch.iter().for_each(|frame| self.joined.extend_from_slice(frame));
            if self.half.write_all(&self.joined).await.is_err() {
                // The reader learns the reason; give it the time to pass on what came before.
                frames.close();
                sleep(HEARTBEAT_MIN).await;
                return;
            }
        }
        let _ = self.half.shutdown().await;
    }
}
