//! What is remembered for repeated sends is forgotten when its time is over, also of devices that never come back.
//!
//! A reader thread looks, so that the writer does not wait for the disk; the writer decides and removes, as effects.

use std::future::Future;
use std::time::Duration;

use crate::clock;
use crate::command::{Command, ReplyTo};
use crate::dedup;
use crate::error::RequestError;
use crate::reader::Readers;
use crate::writer::Writer;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Senders of one look: some milliseconds of a reader; a million take an hour.
const LOOKS_MAX: usize = 256;
/// Between the end of all senders and the next beginning.
const REST: Duration = Duration::from_secs(3600);

/// Goes through all senders, again and again.
pub(crate) struct Sweep {
    readers: Readers,
    writer: Writer,
    /// How long is remembered.
    kept_ms: i64,
    /// Where the next look begins.
    from: Vec<u8>,
}

impl Sweep {
    pub(crate) fn new(readers: Readers, writer: Writer, kept: Duration) -> Self {
        let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        Self { readers, writer, kept_ms, from: Vec::new() }
    }

    /// Until `stopped`.
    pub(crate) async fn run(mut self, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        let mut pause = PAUSE;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut stopped => return,
            }
            pause = match self.look(clock::now_ms()).await {
                Ok(true) => PAUSE,
                Ok(false) => REST,
                // It looks there again.
                Err(RequestError::Busy) => PAUSE,
                Err(error) => {
                    tracing::warn!(%error, "old answers to sends cannot be looked for");
                    REST
                }
            };
        }
    }

    /// Looks at the next senders and has the oldest ids of some forgotten; false at the end of all.
    ///
    /// # Errors
    /// [`RequestError::Busy`], or what the read gives; the next look begins at the same place.
    async fn look(&mut self, now_ms: i64) -> Result<bool, RequestError> {
        let (from, before_ms) = (self.from.clone(), now_ms.saturating_sub(self.kept_ms));
        let look = move |store: &dyn crate::store::Store| {
            Ok(dedup::aged(&*store.snapshot(), &from, before_ms, LOOKS_MAX)?)
        };
        let (found, next) = self.readers.call(look).await?;
        for scope in found {
            self.writer.submit(Command::Forget { scope, before_ms }, ReplyTo::Nobody)?;
        }
        let goes_on = next.is_some();
        self.from = next.unwrap_or_default();
        Ok(goes_on)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use gimbal_codec::ClientMessageId;
    use gimbal_rpc::link::Recipient;

    use super::*;
    use crate::command::{DeviceInfo, NewToken, Proof, Registered, Reply, Sender, TokenHash};
    use crate::log::EmbeddedLog;
    use crate::store::{Store, memory::MemoryStore};
    use crate::writer::Limits;

    const HOUR_MS: i64 = 3_600_000;

    #[tokio::test]
    async fn a_device_that_never_comes_back_is_forgotten_look_by_look() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let readers = Readers::start(&store, 16).unwrap();
        let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
        let writer = Writer::start(store, log, Limits::default(), Box::new(|| HOUR_MS)).unwrap();
        let token = NewToken { hash: TokenHash::of(b"t"), expires_at_ms: i64::MAX };
        let command =
            Command::RegisterDevice { user: None, device: DeviceInfo::default(), token, idempotency: None };
        let Ok(Reply::Registered(Registered { user, device, .. })) = writer.call(command).await else {
            panic!("a device is registered");
        };
        let sender = Sender { user, device, proof: Proof::Token(token.hash) };
        let send = |id| Command::Send {
            sender,
            client_message_id: ClientMessageId::new(id),
            to: Recipient::User(user),
            command: 1,
            content: Bytes::new(),
        };
        for id in 1..=200 {
            writer.call(send(id)).await.unwrap();
        }
        let forgotten = async |sweep: &mut Sweep, now_ms| {
            assert_eq!(sweep.look(now_ms).await, Ok(false), "there is one sender");
            writer.call(Command::Stats).await.unwrap();
            writer.counters().forgotten.get()
        };
        let mut sweep = Sweep::new(readers, writer.clone(), Duration::from_millis(HOUR_MS as u64));
        assert_eq!(forgotten(&mut sweep, 2 * HOUR_MS).await, 0, "its time is not over");
        assert_eq!(forgotten(&mut sweep, 2 * HOUR_MS + 1).await, dedup::FORGOTTEN_MAX as u64);
        assert_eq!(forgotten(&mut sweep, 2 * HOUR_MS + 1).await, 200);
        assert_eq!(forgotten(&mut sweep, 2 * HOUR_MS + 1).await, 200, "nothing is left");
        assert_eq!(writer.call(send(200)).await, Err(RequestError::TooOld));
        assert!(writer.call(send(201)).await.is_ok());
        writer.stop();
    }
}
