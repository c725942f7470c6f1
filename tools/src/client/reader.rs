//! The reading half: bytes in, answers to their waiters, everything else to the event queue.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use gimbal_codec::{
    Command, DecodeError, Decoder, Packet,
    body::{Behind, Close, Message as WireMessage, Reply, Signal},
    limits::FRAME_BYTES_MAX_DOWN,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
};

use super::{
    ClientError, Closed, Event, Page, SIGN_IN_ID, SIGNAL_ID, Shared, SharedPipe, Waiter, lock, lost,
    writer::HEARTBEAT_ID,
};
use crate::{quic, websocket::PipeError};

/// Bytes read at a time.
const READ_BYTES: usize = 16 * 1024;

/// One packet, owned, already judged by its command.
enum Incoming {
    Answer { request_id: String, reply: Result<Bytes, ClientError> },
    Event(Event),
}

/// Where bytes come from.
pub(super) type Half = Box<dyn AsyncRead + Send + Unpin>;

pub(super) struct Reader {
    half: Half,
    decoder: Decoder,
    chunk: Vec<u8>,
    incoming: VecDeque<Incoming>,
    /// Bytes after `incoming` that are not in the protocol.
    broken: Option<ClientError>,
    pipe: Option<SharedPipe>,
    /// What the stream belongs to, on QUIC.
    quic: Option<quinn::Connection>,
}

impl Reader {
    pub(super) fn new(half: Half, pipe: Option<SharedPipe>, quic: Option<quinn::Connection>) -> Self {
        Self {
            half,
            decoder: Decoder::new(),
            chunk: vec![0; READ_BYTES],
            incoming: VecDeque::new(),
            broken: None,
            pipe,
            quic,
        }
    }

    /// Waits until a server that speaks WebSocket has granted the request; over TCP there is nothing to wait for.
    pub(super) async fn opened(&mut self) -> Result<(), ClientError> {
        while self.pipe.as_ref().is_some_and(|pipe| !lock(pipe).is_open()) {
            self.read().await?;
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
        }
        Ok(())
    }

    /// Data of the answer to the sign-in.
    pub(super) async fn sign_in_answer(&mut self) -> Result<Bytes, ClientError> {
        loop {
            match self.next().await? {
                Incoming::Answer { request_id, reply } if request_id == SIGN_IN_ID => return reply,
                Incoming::Event(Event::Closed(closed)) => return Err(ClientError::Closed(closed)),
                _ => {} // nothing else is due before it
            }
        }
    }

    /// Ends with the connection; then every waiter and the event queue are told.
    pub(super) async fn run(mut self, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
        let closed = loop {
            match self.next().await {
                Ok(Incoming::Event(Event::Closed(closed))) => break closed,
                Ok(Incoming::Event(event)) => {
                    let _ = events.send(event).await; // whoever dropped the events does not want them
                }
                Ok(Incoming::Answer { request_id, reply }) => {
                    if let Some(event) = answer(&shared, &request_id, reply) {
                        let _ = events.send(event).await;
                    }
                }
                Err(ClientError::Closed(closed)) => break closed,
                Err(error) => break lost(&error.to_string()),
            }
        };
        let waiters = {
            let mut open = shared.open();
            open.closed = Some(closed.clone());
            std::mem::take(&mut open.waiters)
        };
        for waiter in waiters.into_values() {
            if let Waiter::Answer(waiter) = waiter {
                let _ = waiter.send(Err(ClientError::Closed(closed.clone())));
            }
        }
        let _ = events.send(Event::Closed(closed)).await;
    }

    async fn next(&mut self) -> Result<Incoming, ClientError> {
        loop {
            if let Some(incoming) = self.incoming.pop_front() {
                return Ok(incoming);
            }
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), ClientError> {
        match self.half.read(&mut self.chunk).await {
            Ok(0) => Err(self.ended("closed without a reason")),
            Ok(bytes) => {
                self.broken = self.take(bytes).err();
                Ok(())
            }
            Err(error) => Err(self.ended(&error.to_string())),
        }
    }

    /// The end without a close frame; over QUIC the connection may still say why.
    fn ended(&self, why: &str) -> ClientError {
        let told = self.quic.as_ref().and_then(quic::closed);
        ClientError::Closed(match told {
            Some((code, reason)) => Closed { code: Some(code), reason, retry_after: Duration::ZERO },
            None => lost(why),
        })
    }

    fn take(&mut self, bytes: usize) -> Result<(), ClientError> {
        let (mut frames, mut chunk) = (Vec::new(), &self.chunk[..bytes]);
        if let Some(pipe) = &self.pipe {
            let broken = |error: PipeError| ClientError::Closed(lost(&error.to_string()));
            let mut pipe = lock(pipe);
            let mut replies = Vec::new();
            pipe.incoming(chunk, &mut frames, &mut replies).map_err(broken)?;
            pipe.hold(&replies);
            chunk = &frames;
        }
        let mut feed = self.decoder.feed(chunk);
        while let Some(body) = feed.next_frame(FRAME_BYTES_MAX_DOWN)? {
            if let Some(incoming) = judge(Packet::decode(body)?)? {
                self.incoming.push_back(incoming);
            }
        }
        Ok(())
    }
}

/// What a packet is; commands this version does not know are skipped.
fn judge(packet: Packet<'_>) -> Result<Option<Incoming>, DecodeError> {
    let Ok(command) = Command::try_from(packet.command) else { return Ok(None) };
    let event = match command {
        Command::Message => Event::Message((&WireMessage::decode(packet.content)?).into()),
        Command::Behind => Event::Behind { latest: Behind::decode(packet.content)?.latest },
        Command::Close => Event::Closed(closed(&Close::decode(packet.content)?)),
        Command::Signal if packet.request_id == SIGNAL_ID => match reply(packet.content)? {
            Err(error) => Event::SignalRefused(error),
            Ok(_) => return Ok(None),
        },
        Command::Signal => signal(&Signal::decode(packet.content)?),
        Command::Heartbeat if packet.request_id == HEARTBEAT_ID => return Ok(None),
        _ => {
            let request_id = packet.request_id.to_owned();
            return Ok(Some(Incoming::Answer { request_id, reply: reply(packet.content)? }));
        }
    };
    Ok(Some(Incoming::Event(event)))
}

fn reply(content: &[u8]) -> Result<Result<Bytes, ClientError>, DecodeError> {
    let reply = Reply::decode(content)?;
    Ok(match reply.code {
        gimbal_codec::code::OK => Ok(Bytes::copy_from_slice(reply.data)),
        code => Err(ClientError::Refused { code, message: reply.message.to_owned() }),
    })
}

fn closed(close: &Close<'_>) -> Closed {
    let retry_after = Duration::from_millis(close.retry_after_ms);
    Closed { code: Some(close.code), reason: close.reason.to_owned(), retry_after }
}

fn signal(signal: &Signal<'_>) -> Event {
    Event::Signal {
        from_user: signal.from_user,
        from_device: signal.from_device,
        room: signal.room,
        command: signal.command,
        content: Bytes::copy_from_slice(signal.content),
    }
}

/// Gives an answer to its waiter; a page becomes an event. Answers nobody waits for are dropped.
fn answer(shared: &Shared, request_id: &str, reply: Result<Bytes, ClientError>) -> Option<Event> {
    let id: u64 = request_id.parse().ok()?;
    match shared.open().waiters.remove(&id)? {
        Waiter::Answer(waiter) => {
            let _ = waiter.send(reply);
            None
        }
        Waiter::Page => {
            let page = reply.and_then(|data| Page::decode(&data).map_err(ClientError::from));
            Some(Event::Page(page))
        }
    }
}
