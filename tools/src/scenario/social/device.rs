//! One device of a person: it follows its mailbox, acknowledges, and comes back whenever its connection ends.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use gimbal_codec::{ClientMessageId, DeviceId, Seq, UserId, code};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    client::{Client, ClientError, Item, Mailbox, Options},
    clock,
    ledger::Mark,
    load::Place,
    quic,
    report::Latency,
};

/// Before a device comes back after its connection has ended.
const RETURN: Duration = Duration::from_millis(50);
/// Longest time to an answer: only a failure waits for it.
const ANSWER: Duration = Duration::from_secs(30);
/// Messages taken for each acknowledgement.
const ACK_EVERY: u64 = 4;

/// Whether a device should be online; a later generation has it connect anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) online: bool,
    pub(super) generation: u64,
}

/// What all devices count together.
#[derive(Default)]
pub(super) struct Crowd {
    /// This run, as in every mark.
    pub(super) run: u64,
    /// The server is being killed and started.
    pub(super) is_restarting: AtomicBool,
    /// Rises before and after each of its deaths: connections from before then may end, also when that is noticed late.
    pub(super) kills: AtomicU64,
    pub(super) sign_ins: AtomicU64,
    pub(super) online: AtomicU64,
    pub(super) delivered: AtomicU64,
    /// Connections that ended unasked.
    pub(super) closed: AtomicU64,
    /// From when a message should have been sent until a first device had it.
    pub(super) deliveries: Mutex<Latency>,
    pub(super) faults: Mutex<Vec<String>>,
}

impl Crowd {
    pub(super) fn fault(&self, words: String) {
        locked(&self.faults).push(words);
    }
}

/// Of whom it is, and what it was given.
pub(super) struct Device {
    pub(super) user: u64,
    pub(super) device: u64,
    pub(super) token: String,
    /// The first one of its person: the one that sends.
    pub(super) is_first: bool,
    next_id: AtomicU64,
    client: Mutex<Option<Client>>,
    /// Message ids by seq.
    received: Mutex<Vec<u64>>,
    wanted: watch::Sender<Wanted>,
}

impl Device {
    pub(super) fn new((user, device, token): (u64, u64, String), is_first: bool, online: bool) -> Self {
        Self {
            user,
            device,
            token,
            is_first,
            next_id: AtomicU64::new(1),
            client: Mutex::default(),
            received: Mutex::default(),
            wanted: watch::Sender::new(Wanted { online, generation: 0 }),
        }
    }

    /// Its connection, while it has one.
    pub(super) fn client(&self) -> Option<Client> {
        locked(&self.client).clone()
    }

    /// The id of its next message.
    pub(super) fn next_id(&self) -> ClientMessageId {
        ClientMessageId::new(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// How much it was given.
    pub(super) fn count(&self) -> u64 {
        locked(&self.received).len() as u64
    }

    /// The ids of all messages that it was given, by seq from 1.
    pub(super) fn received(&self) -> Vec<u64> {
        locked(&self.received).clone()
    }

    pub(super) fn is_online(&self) -> bool {
        self.wanted.borrow().online
    }

    /// Comes or goes.
    pub(super) fn want(&self, online: bool) {
        self.wanted.send_modify(|wanted| *wanted = Wanted { online, generation: wanted.generation + 1 });
    }

    /// Begins to follow the mailbox, until the task is aborted.
    pub(super) fn follow(self: &Arc<Self>, place: &Place, crowd: &Arc<Crowd>) -> JoinHandle<()> {
        tokio::spawn(run(Arc::clone(self), place.clone(), Arc::clone(crowd)))
    }

    fn options(&self, place: &Place) -> anyhow::Result<Options> {
        let (user, device) = (UserId::new(self.user), DeviceId::new(self.device));
        Ok(Options {
            websocket: place.websocket,
            quic: place.quic.as_deref().map(quic::trust).transpose()?,
            cursor: Some(Seq::new(self.count())),
            timeout: ANSWER,
            ..Options::new(place.address.to_string(), user, device, self.token.clone())
        })
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(device: Arc<Device>, place: Place, crowd: Arc<Crowd>) {
    let mut wanted = device.wanted.subscribe();
    loop {
        if wanted.wait_for(|wanted| wanted.online).await.is_err() {
            return;
        }
        wanted.mark_unchanged();
        let options = match device.options(&place) {
            Ok(options) => options,
            Err(error) => return crowd.fault(format!("{error:#}")),
        };
        let kills = crowd.kills.load(Ordering::SeqCst);
        match Mailbox::connect(options).await {
            Ok((mailbox, _)) => {
                crowd.sign_ins.fetch_add(1, Ordering::Relaxed);
                crowd.online.fetch_add(1, Ordering::Relaxed);
                *locked(&device.client) = Some(mailbox.client().clone());
                let ended = tokio::select! {
                    error = listen(&device, mailbox, &crowd) => Some(error),
                    _ = wanted.changed() => None,
                };
                *locked(&device.client) = None;
                crowd.online.fetch_sub(1, Ordering::Relaxed);
                note_end(&device, ended, kills, &crowd);
            }
            Err(ClientError::Refused { code: code::BUSY | code::UNAVAILABLE, .. }) => {}
            Err(error @ ClientError::Refused { .. }) => {
                crowd.closed.fetch_add(1, Ordering::Relaxed);
                crowd.fault(format!("device {} may not sign in: {error}", device.device));
            }
            // While the server is away nobody listens.
            Err(_) => {}
        }
        sleep(RETURN).await;
    }
}

/// What broke the protocol is a fault at any time, an end of the connection unless the server was killed, since there were
/// `kills` or just now.
fn note_end(device: &Device, ended: Option<ClientError>, kills: u64, crowd: &Crowd) {
    let Some(error) = ended else { return };
    let is_end = matches!(error, ClientError::Closed(_));
    let is_restarting = crowd.is_restarting.load(Ordering::SeqCst);
    if is_end && (is_restarting || crowd.kills.load(Ordering::SeqCst) != kills) {
        return;
    }
    crowd.closed.fetch_add(1, Ordering::Relaxed);
    crowd.fault(format!("device {} of user {}: {error}", device.device, device.user));
}

/// Takes what comes until the connection ends.
async fn listen(device: &Device, mut mailbox: Mailbox, crowd: &Crowd) -> ClientError {
    loop {
        match mailbox.next().await {
            Ok(Item::Message(message)) => {
                locked(&device.received).push(message.id.get());
                crowd.delivered.fetch_add(1, Ordering::Relaxed);
                let mark = Mark::read(&message.content).filter(|mark| mark.run == crowd.run);
                if let Some(mark) = mark.filter(|_| device.is_first) {
                    let late_ns = clock::shared_ns().saturating_sub(mark.intended_ns);
                    locked(&crowd.deliveries).record(late_ns);
                }
                if message.seq.get().is_multiple_of(ACK_EVERY) {
                    // The answer would only repeat it; a lost one is made good by the next.
                    let _ = mailbox.client().begin_ack(message.seq).await;
                }
            }
            Ok(Item::Trimmed(seq)) => crowd.fault(format!("user {}: trimmed up to {seq}", device.user)),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}
