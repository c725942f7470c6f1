//! Publishes to a room over one gRPC stream without waiting: the thread with the sockets goes on.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use gimbal_rpc::v1::{PublishRequest, rooms_client::RoomsClient};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::stage::{Stage, unless_stopped};
use crate::{
    clock,
    grpc::{Authorized, Credential, explain},
    ledger::Mark,
};

/// How long the word of a room's first member may take to control.
const INTEREST_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two asks for it.
const INTEREST_PERIOD: Duration = Duration::from_millis(20);
/// Publishes that may wait for the stream; more means that the server takes none.
const WAITING_MAX: usize = 4096;

/// One room's publisher.
pub struct Publisher {
    rooms: RoomsClient<Authorized>,
    runtime: Handle,
    room: u64,
    bytes: usize,
    number: u32,
    stream: mpsc::Sender<PublishRequest>,
    failed: Sender<anyhow::Error>,
    failures: Receiver<anyhow::Error>,
}

impl Publisher {
    /// Publishes contents of `bytes` (at least a mark's) to `room`.
    ///
    /// # Errors
    /// When the key cannot be sent.
    pub fn new(stage: &Stage<'_>, room: u64, bytes: usize) -> Result<Self> {
        let rooms = stage.api.rooms(Credential::bearer(&stage.target.key)?);
        let (failed, failures) = channel();
        let (stream, requests) = mpsc::channel(WAITING_MAX);
        let (runtime, told) = (stage.runtime.handle().clone(), failed.clone());
        let mut client = rooms.clone();
        runtime.spawn(async move {
            let answers = async {
                let mut replies = client.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
                while replies.message().await?.is_some() {}
                Ok::<_, Status>(())
            };
            if let Err(status) = answers.await {
                let _ = told.send(explain("publish", &status));
            }
        });
        Ok(Self { rooms, runtime, room, bytes, number: 0, stream, failed, failures })
    }

    /// Begins a publish that should have been sent at `intended_ns`.
    pub fn publish(&mut self, intended_ns: u64) {
        let request = self.request(intended_ns);
        if self.stream.try_send(request).is_err() {
            let _ = self.failed.send(anyhow!("publish: the stream has ended or takes nothing"));
        }
    }

    /// The next failure of a publish, if there was one.
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failures.try_recv().ok()
    }

    /// Publishes until a gateway with members took it: the word of the first join is on its way to control.
    ///
    /// # Errors
    /// When that takes too long or a publish is refused.
    pub fn await_interest(&mut self) -> Result<()> {
        let deadline = clock::now() + INTEREST_TIMEOUT;
        loop {
            let request = self.request(clock::shared_ns());
            let reply = self.runtime.block_on(self.rooms.publish(request));
            if reply.map_err(|status| explain("publish", &status))?.into_inner().gateways > 0 {
                return Ok(());
            }
            unless_stopped("the first publish")?;
            ensure!(clock::now() < deadline, "no gateway became interested in the room");
            thread::sleep(INTEREST_PERIOD);
        }
    }

    fn request(&mut self, intended_ns: u64) -> PublishRequest {
        let mut content = Vec::with_capacity(self.bytes);
        Mark { run: self.room, sender: 0, number: self.number, intended_ns }.write(self.bytes, &mut content);
        self.number = self.number.wrapping_add(1);
        PublishRequest { room_id: self.room, command: 1, content: content.into() }
    }
}
