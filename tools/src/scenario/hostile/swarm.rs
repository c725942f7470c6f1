//! The attackers: one thread of low priority, so that on the cores it shares with the honest clients it takes what they leave.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use gimbal_codec::{Command, body::Reply};
use rustls::ClientConfig;
use serde::Serialize;

use super::attack::{Attack, Door, Hand, Next};
use crate::{
    clock,
    load::{
        fleet::{Member, sign_in_frame},
        nanos,
        sockets::{Event, Sockets},
    },
};

/// Longest wait in one turn, so that orders are noticed.
const TURN_MAX: Duration = Duration::from_millis(5);
/// Connections begun in one turn before arrivals are looked at again.
const OPENS_PER_TURN: usize = 64;
/// Steps taken in one turn.
const STEPS_PER_TURN: usize = 1024;
/// Connections ended in one turn.
const CLOSES_PER_TURN: usize = 64;
/// How long nothing is begun after no descriptor or port was free.
const PAUSE_NS: u64 = 50_000_000;

/// What a swarm is made of.
pub(super) struct Plot {
    pub(super) attack: Box<dyn Attack>,
    pub(super) address: SocketAddr,
    pub(super) sources: Vec<Ipv4Addr>,
    pub(super) websocket: bool,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) quic: Option<quinn_proto::ClientConfig>,
    /// Devices that connections may sign in as.
    pub(super) members: Vec<Member>,
    /// Connections kept up.
    pub(super) connections: usize,
    /// Of its thread.
    pub(super) niceness: i32,
}

/// What it did so far.
#[derive(Default, Debug)]
pub(super) struct Deeds {
    opened: AtomicU64,
    not_opened: AtomicU64,
    signed_in: AtomicU64,
    not_signed_in: AtomicU64,
    steps: AtomicU64,
    ended: AtomicU64,
    /// Connections now.
    open: AtomicU64,
}

/// [`Deeds`] as numbers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Done {
    /// Connections begun.
    pub(super) opened: u64,
    /// Those for which there was no descriptor or port here.
    pub(super) not_opened: u64,
    /// Sign-ins granted.
    pub(super) signed_in: u64,
    /// And refused.
    pub(super) not_signed_in: u64,
    /// Steps of the attack.
    pub(super) steps: u64,
    /// Connections that the server ended.
    pub(super) ended: u64,
}

impl Deeds {
    pub(super) fn done(&self) -> Done {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Done {
            opened: read(&self.opened),
            not_opened: read(&self.not_opened),
            signed_in: read(&self.signed_in),
            not_signed_in: read(&self.not_signed_in),
            steps: read(&self.steps),
            ended: read(&self.ended),
        }
    }

    /// Connections now.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

fn bump(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}

/// Orders to the thread.
#[derive(Default)]
struct Orders {
    attack: AtomicBool,
    end: AtomicBool,
}

/// The running thread; ended when dropped.
pub(super) struct Swarm {
    orders: Arc<Orders>,
    pub(super) deeds: Arc<Deeds>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Swarm {
    /// Waits for its order.
    pub(super) fn start(plot: Plot) -> Result<Self> {
        let (orders, deeds) = (Arc::new(Orders::default()), Arc::new(Deeds::default()));
        let (told, tell) = (Arc::clone(&orders), Arc::clone(&deeds));
        let run = move || {
            // A higher priority would only make the honest clients' own figures worse.
            let _ = rustix::process::nice(plot.niceness);
            Crowd::new(plot, tell)?.run(&told)
        };
        let thread = thread::Builder::new().name("swarm".into()).spawn(run).context("no thread")?;
        Ok(Self { orders, deeds, thread: Some(thread) })
    }

    /// Attacks from now on, or lets go of all connections.
    pub(super) fn order(&self, attack: bool) {
        self.orders.attack.store(attack, Ordering::Relaxed);
    }

    /// Ends it.
    ///
    /// # Errors
    /// What went wrong in it.
    pub(super) fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        self.orders.end.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("the attackers' thread panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = self.stop(); // whoever wants to know calls `end`
    }
}

/// One connection.
#[derive(Clone, Copy)]
struct Seat {
    number: u64,
    step: u64,
}

/// The places of connections: whoever takes one that was left has the same device as the one before, and nobody else's.
struct Places {
    free: Vec<usize>,
    /// Connections that each place has had.
    lives: Vec<u64>,
}

impl Places {
    fn new(count: usize) -> Self {
        Self { free: (0..count).rev().collect(), lives: vec![0; count] }
    }

    fn open(&self) -> usize {
        self.lives.len() - self.free.len()
    }

    /// The number of a new connection: of those with one place each is higher than the one before.
    fn take(&mut self) -> Option<u64> {
        let place = self.free.pop()?;
        let number = self.lives[place] * self.lives.len() as u64 + place as u64;
        self.lives[place] += 1;
        Some(number)
    }

    /// Connection `number` is over.
    fn leave(&mut self, number: u64) {
        self.free.push((number % self.lives.len() as u64) as usize);
    }

    fn leave_all(&mut self) {
        self.free = (0..self.lives.len()).rev().collect();
    }
}

struct Crowd {
    plot: Plot,
    deeds: Arc<Deeds>,
    sockets: Sockets,
    /// By index of the sockets.
    seats: Vec<Seat>,
    /// When a connection takes its next step.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    places: Places,
    /// Connections below this index are over.
    let_go: usize,
    paused_until_ns: u64,
    now_ns: u64,
}

impl Crowd {
    fn new(plot: Plot, deeds: Arc<Deeds>) -> Result<Self> {
        let sockets = Sockets::with_sources(&plot.sources).context("no epoll")?;
        let sockets =
            sockets.over_websocket(plot.websocket).over_tls(plot.tls.clone()).over_quic(plot.quic.clone())?;
        let (seats, due, places) = (Vec::new(), BinaryHeap::new(), Places::new(plot.connections));
        Ok(Self { plot, deeds, sockets, seats, due, places, let_go: 0, paused_until_ns: 0, now_ns: 0 })
    }

    fn run(mut self, orders: &Orders) -> Result<()> {
        while !orders.end.load(Ordering::Relaxed) {
            self.now_ns = clock::shared_ns();
            if orders.attack.load(Ordering::Relaxed) {
                self.open_some();
                self.step_some();
            } else {
                self.let_go();
            }
            self.turn()?;
            self.deeds.open.store(self.places.open() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn open_some(&mut self) {
        for _ in 0..OPENS_PER_TURN {
            if self.now_ns < self.paused_until_ns {
                return;
            }
            let Some(number) = self.places.take() else { return };
            let door = self.plot.attack.door(number);
            let begun = match door {
                Door::Bare => self.sockets.begin_bare(self.plot.address),
                Door::Open | Door::SignedIn(_) => self.sockets.begin_connect(self.plot.address),
            };
            let Ok(index) = begun else {
                bump(&self.deeds.not_opened);
                self.places.leave(number);
                self.paused_until_ns = self.now_ns + PAUSE_NS;
                return;
            };
            debug_assert_eq!(index, self.seats.len(), "each connection has the next index");
            self.seats.push(Seat { number, step: 0 });
            bump(&self.deeds.opened);
            match door {
                Door::SignedIn(place) => {
                    let frame = sign_in_frame(&self.plot.members[place % self.plot.members.len()], None);
                    self.sockets.write(index, |out| out.extend_from_slice(&frame));
                }
                Door::Bare | Door::Open => self.due.push(Reverse((self.now_ns, index))),
            }
        }
    }

    fn step_some(&mut self) {
        for _ in 0..STEPS_PER_TURN {
            match self.due.peek() {
                Some(&Reverse((at_ns, index))) if at_ns <= self.now_ns => {
                    self.due.pop();
                    self.step(index);
                }
                _ => return,
            }
        }
    }

    fn step(&mut self, index: usize) {
        if !self.sockets.is_open(index) {
            return;
        }
        let Seat { number, step } = self.seats[index];
        self.seats[index].step += 1;
        bump(&self.deeds.steps);
        let mut hand = Hand { sockets: &mut self.sockets, index, number, step };
        match self.plot.attack.step(&mut hand) {
            Next::Again(later) => self.due.push(Reverse((self.now_ns + nanos(later), index))),
            Next::Wait => {}
            Next::Reset => {
                self.sockets.reset(index);
                self.places.leave(number);
            }
        }
    }

    /// Ends connections, some in a turn: over QUIC the end of each is a datagram that nobody sends again.
    fn let_go(&mut self) {
        if self.places.open() == 0 {
            return;
        }
        self.due.clear();
        for _ in 0..CLOSES_PER_TURN {
            while self.let_go < self.seats.len() && !self.sockets.is_open(self.let_go) {
                self.let_go += 1;
            }
            self.sockets.close(self.let_go);
        }
        if self.let_go == self.seats.len() {
            self.places.leave_all();
        }
    }

    fn turn(&mut self) -> Result<()> {
        let next = self.due.peek().map_or(u64::MAX, |Reverse((at_ns, _))| *at_ns);
        let wait = TURN_MAX.min(Duration::from_nanos(next.saturating_sub(self.now_ns)));
        let (due, deeds, places, now_ns) = (&mut self.due, &self.deeds, &mut self.places, self.now_ns);
        let seats = &self.seats;
        let each = &mut |index, event: Event<'_>, _: &mut Vec<u8>| match event {
            Event::Frame(packet) if packet.command == Command::SignIn.number() => {
                let granted = Reply::decode(packet.content).is_ok_and(|reply| reply.code == 0);
                bump(if granted { &deeds.signed_in } else { &deeds.not_signed_in });
                if granted {
                    due.push(Reverse((now_ns, index)));
                }
            }
            Event::Frame(_) => {}
            Event::Closed(_) => {
                bump(&deeds.ended);
                places.leave(seats[index].number);
            }
        };
        self.sockets.poll(wait, each).context("epoll fails")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_into_a_place_that_was_left_has_its_device_and_a_higher_number() {
        let mut places = Places::new(3);
        assert_eq!(
            [places.take(), places.take(), places.take(), places.take()],
            [Some(0), Some(1), Some(2), None]
        );
        places.leave(1);
        assert_eq!((places.open(), places.take(), places.take()), (2, Some(4), None));
        places.leave_all();
        assert_eq!([places.take(), places.take(), places.take()], [Some(3), Some(7), Some(5)]);
    }
}
