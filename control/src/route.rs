//! Where devices are now. In memory only: gateways announce their sessions again after a restart of control.
//!
//! Owned by the writer thread and consulted after each commit in command order, so that what concerns a session leaves
//! on one lane in one order. A route is one slot of a chunk, with everything in it, and its user one entry of a table:
//! [`ROUTE_BYTES`] at most.

mod ended;
pub mod policy;
mod slots;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use gimbal_codec::{Attach, CloseReason, DeviceId, GatewayId, Seq, SessionKey, UserId, epoch_number};
use gimbal_rpc::link::{Body, Down, Downlink, Hello, Target};
use hashbrown::HashMap;

use crate::command::{Lane, SessionInfo, SessionPage, SessionRef, UserPresence};
use crate::error::RequestError;
use crate::event::Change;
use crate::trace::{Pen, Record};
use ended::Ended;
use policy::{Known, Policy};
use slots::Slots;

/// Memory of one route: its slot and, for the first one of a user, an entry of the table, which is at its worst just after
/// it has grown to twice its size and is 7/16 full.
pub const ROUTE_BYTES: usize = size_of::<Slot>() + (size_of::<(UserId, u32)>() + 1) * 16 / 7;
/// What a session may cost here at most.
const _: () = assert!(size_of::<Slot>() == 80 && ROUTE_BYTES <= 256);

/// End of a list of slots.
const NONE: u32 = u32::MAX;

/// All routes and all lanes.
pub struct Routes {
    epoch: u32,
    policy: Policy,
    attaches: u64,
    lanes: Vec<LaneEntry>,
    slots: Slots<Slot>,
    free: u32,
    count: usize,
    /// First slot of each user's devices.
    users: HashMap<UserId, u32>,
    /// By administrators.
    ended: Ended,
    /// Since they were last forgotten.
    changes: Vec<Change>,
    /// A gateway is gone, and its sessions with it, unless they are announced again.
    lost: bool,
    /// Unix milliseconds.
    now_ms: i64,
}

struct LaneEntry {
    lane: Lane,
    hello: Hello,
    down: Arc<dyn Downlink>,
    pending: Vec<Down>,
}

impl LaneEntry {
    /// Joins the item of the same body, when that is the last one.
    fn add(&mut self, body: &Arc<Body>, target: Target) {
        match self.pending.last_mut() {
            Some(Down::Deliver { body: last, targets }) if Arc::ptr_eq(last, body) => targets.push(target),
            _ => self.pending.push(Down::Deliver { body: Arc::clone(body), targets: vec![target] }),
        }
    }
}

struct Slot {
    route: Option<Route>,
    /// The user's next device, or the next free slot.
    next: u32,
}

struct Route {
    user: UserId,
    device: DeviceId,
    session: SessionKey,
    attach: Attach,
    /// What decides between two sessions of a device: the attach number at sign-in, or the one that was announced.
    rank: Attach,
    /// Unix seconds.
    attached_at: u32,
    /// When the token was issued that it signed in with, Unix seconds; 0: not known.
    issued_at: u32,
    /// Never 0.
    lane: NonZeroU32,
    /// IPv4 as mapped; unspecified: not known.
    ip: [u8; 16],
    port: u16,
    /// Of the device; 0: not known, or of no interest.
    kind: u8,
}

impl Route {
    const fn lane(&self) -> Lane {
        Lane(self.lane.get())
    }

    fn peer(&self) -> String {
        match Ipv6Addr::from(self.ip) {
            Ipv6Addr::UNSPECIFIED => String::new(),
            ip => SocketAddr::new(ip.to_canonical(), self.port).to_string(),
        }
    }
}

/// What does not parse is not an address that an operator could use.
fn peer(text: &str) -> ([u8; 16], u16) {
    match text.parse::<SocketAddr>().map(|address| (address.ip(), address.port())) {
        Ok((IpAddr::V4(ip), port)) => (ip.to_ipv6_mapped().octets(), port),
        Ok((IpAddr::V6(ip), port)) => (ip.octets(), port),
        Err(_) => ([0; 16], 0),
    }
}

/// A session that comes online.
#[derive(Clone, Debug)]
pub struct Arrival<'a> {
    /// The connection it came by.
    pub lane: Lane,
    /// Its slot at the gateway.
    pub session: SessionKey,
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// Address.
    pub peer: &'a str,
    /// When its token was issued, Unix milliseconds; 0: not known.
    pub issued_at_ms: i64,
    /// Of the device, if [`Policy::asks_kind`]; else 0.
    pub kind: u8,
}

/// A session that is online, and how others of its user ended for it: [`CloseReason::Takeover`] is its device's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Its number.
    pub attach: Attach,
    /// One for each that ended.
    pub ended: Vec<CloseReason>,
}

/// What came of an announcement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Announced {
    /// Online.
    Attached(Attached),
    /// It ends: a newer session of the device is known, the policy lets others stay, or an administrator has ended it
    /// and its gateway was not told.
    Refused(CloseReason),
}

impl Routes {
    /// No route, for the life of control with this durable number.
    pub fn new(control_epoch: u32, policy: Policy) -> Self {
        Self {
            epoch: control_epoch,
            policy,
            attaches: 0,
            lanes: Vec::new(),
            slots: Slots::new(),
            free: NONE,
            count: 0,
            users: HashMap::new(),
            ended: Ended::default(),
            changes: Vec::new(),
            lost: false,
            now_ms: 0,
        }
    }

    /// What time it is from now on, Unix milliseconds.
    pub fn set_time(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// Sessions that began or ended since [`Self::forget_changes`], in order. One that another session of its device took over has
    /// not ended, nor have those of a gateway that is gone: they may be announced again.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// They are told of.
    pub fn forget_changes(&mut self) {
        self.changes.clear();
    }

    /// Whether a gateway has gone since this was asked last.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Whether a user has a session.
    pub fn is_online(&self, user: UserId) -> bool {
        self.users.get(&user).is_some_and(|at| *at != NONE)
    }

    /// The user's sessions.
    pub fn presence(&self, user: UserId) -> UserPresence {
        let online = self.devices(user).map(|route| (route.device, i64::from(route.attached_at) * 1000));
        UserPresence { user, online: online.collect() }
    }

    /// Says of a device without a session that it has none.
    pub fn presume_offline(&mut self, user: UserId, device: DeviceId) {
        if self.find(user, device).is_none() {
            self.changes.push(Change { user, device, attach: None, at_ms: self.now_ms });
        }
    }

    /// A gateway linked up; its earlier connection, if any, is forgotten with its routes.
    pub fn gateway_up(&mut self, lane: Lane, hello: Hello, down: Arc<dyn Downlink>) {
        let earlier =
            self.lanes.iter().find(|entry| entry.hello.gateway == hello.gateway).map(|entry| entry.lane);
        if let Some(earlier) = earlier {
            self.gateway_down(earlier);
        }
        self.lanes.push(LaneEntry { lane, hello, down, pending: Vec::new() });
    }

    /// A connection ended: its routes are forgotten.
    pub fn gateway_down(&mut self, lane: Lane) {
        let Some(at) = self.lanes.iter().position(|entry| entry.lane == lane) else { return };
        self.lanes.swap_remove(at);
        for at in 0..self.slots.len() as u32 {
            let route = self.slots[at].route.as_ref().filter(|route| route.lane() == lane);
            if let Some((user, device)) = route.map(|route| (route.user, route.device)) {
                self.take_out(user, device);
                self.lost = true;
            }
        }
    }

    /// A session signed in: the newest of its device. The older one is kicked wherever it is, and others as the policy
    /// says. `None` when its connection is gone.
    ///
    /// # Errors
    /// What the policy refuses; nothing is changed then.
    pub fn attach(&mut self, arrival: &Arrival<'_>, now_ms: i64) -> Option<Result<Attached, RequestError>> {
        self.lane(arrival.lane)?;
        let ended = match self.policy.arrive(arrival.kind, &self.others(arrival)) {
            Ok(ended) => self.end(arrival, &ended),
            Err(refused) => return Some(Err(refused)),
        };
        let attach = self.take_attach();
        self.insert(arrival, attach, attach, now_ms);
        Some(Ok(Attached { attach, ended }))
    }

    /// Sessions of the user's other devices.
    fn others(&self, arrival: &Arrival<'_>) -> Vec<Known> {
        let others = self.devices(arrival.user).filter(|route| route.device != arrival.device);
        others.map(|route| Known { device: route.device, rank: route.rank, kind: route.kind }).collect()
    }

    /// Ends the device's own session, and those of `others`. Returns why each was.
    fn end(&mut self, arrival: &Arrival<'_>, others: &[(DeviceId, CloseReason)]) -> Vec<CloseReason> {
        let mut ended = Vec::new();
        for &(device, reason) in [(arrival.device, CloseReason::Takeover)].iter().chain(others) {
            if self.kick(arrival.user, Some(device), reason) > 0 {
                ended.push(reason);
            }
        }
        ended
    }

    /// Whether [`Arrival::kind`] matters.
    pub fn asks_kind(&self) -> bool {
        self.policy.asks_kind()
    }

    /// A session that is online already, with its last attach number `was`. `None` when its connection is gone.
    pub fn announce(&mut self, arrival: &Arrival<'_>, was: Attach, now_ms: i64) -> Option<Announced> {
        self.lane(arrival.lane)?;
        if self.ended.holds(arrival.device, was) {
            return Some(Announced::Refused(CloseReason::Kicked));
        }
        if let Some(at) = self.find(arrival.user, arrival.device) {
            let known = self.route(at);
            if (known.lane(), known.session) == (arrival.lane, arrival.session) {
                let attach = known.attach;
                return Some(Announced::Attached(Attached { attach, ended: Vec::new() }));
            }
            if known.rank >= was {
                return Some(Announced::Refused(CloseReason::Takeover));
            }
        }
        let mine = Known { device: arrival.device, rank: was, kind: arrival.kind };
        let ended = match self.policy.come_back(mine, &self.others(arrival)) {
            Ok(ended) => self.end(arrival, &ended),
            Err(reason) => return Some(Announced::Refused(reason)),
        };
        let attach = self.take_attach();
        self.insert(arrival, attach, was, now_ms);
        Some(Announced::Attached(Attached { attach, ended }))
    }

    /// A session is gone; ignored (false) unless it is the device's newest.
    pub fn detach(&mut self, session: SessionRef, user: UserId, device: DeviceId) -> bool {
        let is_newest = self.current(session, user, device).is_some();
        if is_newest {
            self.remove(user, device);
        }
        is_newest
    }

    /// The session's attach number now, when it is its device's newest session. An older number of the same session is
    /// its own: the answer to its announcement is still on the way down.
    pub fn current(&self, session: SessionRef, user: UserId, device: DeviceId) -> Option<Attach> {
        let route = self.route(self.find(user, device)?);
        let same = (route.lane(), route.session) == (session.lane, session.session)
            && session.attach <= route.attach;
        same.then_some(route.attach)
    }

    /// Ends the session of a device, or of all the user's devices, and forgets the routes. Returns how many. Should a gateway
    /// not get the word, it gets it when it announces the session.
    pub fn kick(&mut self, user: UserId, device: Option<DeviceId>, reason: CloseReason) -> u32 {
        let mut kicked = 0;
        let mut at = self.users.get(&user).copied().unwrap_or(NONE);
        while at != NONE {
            let next = self.slots[at].next;
            let route = self.route(at);
            let (of, lane, session, attach) = (route.device, route.lane(), route.session, route.attach);
            if device.is_none_or(|device| device == of) {
                self.remove(user, of);
                self.send(lane, Down::Kick { session, attach, reason });
                if reason == CloseReason::Kicked {
                    self.ended.add(of, attach);
                }
                kicked += 1;
            }
            at = next;
        }
        kicked
    }

    /// Ends a user's sessions that began with a token issued before `before_ms`, or nobody knows when. Returns how many.
    pub fn kick_older(&mut self, user: UserId, before_ms: i64, reason: CloseReason) -> u32 {
        let is_older = |route: &&Route| i64::from(route.issued_at) * 1000 < before_ms;
        let older: Vec<DeviceId> = self.devices(user).filter(is_older).map(|route| route.device).collect();
        older.into_iter().map(|device| self.kick(user, Some(device), reason)).sum()
    }

    /// Queues an item for a connection; dropped when it is gone.
    pub fn send(&mut self, lane: Lane, item: Down) {
        if let Some(at) = self.lane(lane) {
            self.lanes[at].pending.push(item);
        }
    }

    /// Queues `body` for all sessions of `users`: one item for each gateway. Returns the number of targets. What becomes of
    /// each user is written with `pen`, as of `at_ms` (Unix milliseconds).
    pub fn deliver(
        &mut self,
        body: &Arc<Body>,
        users: &[(UserId, Seq)],
        mut pen: Option<Pen<'_>>,
        at_ms: i64,
    ) -> u64 {
        let (mut count, message) = (0, body.message_id);
        for &(user, seq) in users {
            let before = count;
            let mut at = self.users.get(&user).copied().unwrap_or(NONE);
            while at != NONE {
                let route = self.route(at);
                let Route { session, attach, device, .. } = *route;
                let lane = self.lane(route.lane());
                at = self.slots[at].next;
                let Some(lane) = lane.map(|lane| &mut self.lanes[lane]) else { continue };
                lane.add(body, Target { session, attach, seq });
                count += 1;
                if let Some(pen) = &mut pen {
                    let (gateway, lost) = (lane.hello.gateway, false);
                    pen.write(Record::Pushed { message, user, seq, device, session, gateway, at_ms, lost });
                }
            }
            if let Some(pen) = pen.as_mut().filter(|_| count == before) {
                pen.write(Record::Offline { message, user, seq, at_ms });
            }
        }
        count
    }

    /// Hands each gateway its queued items, once. Returns how many were lost to a full or broken link; `lose` is told
    /// whose.
    pub fn flush(&mut self, mut lose: impl FnMut(GatewayId)) -> u64 {
        let mut lost = 0;
        for entry in &mut self.lanes {
            let count = entry.pending.len();
            if count > 0 && entry.down.deliver(&mut entry.pending).is_err() {
                lost += count as u64;
                lose(entry.hello.gateway);
                tracing::debug!(gateway = entry.hello.gateway.get(), count, "link full");
            }
            entry.pending.clear();
        }
        lost
    }

    /// Up to `limit` sessions from slot `from`; a session that stays is on exactly one page.
    pub fn page(&self, user: Option<UserId>, from: u64, limit: usize) -> SessionPage {
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        match user {
            // The writer must not walk all slots for one user.
            Some(user) => {
                let mut slots: Vec<u32> = self.slots_of(user).filter(|at| *at >= from).collect();
                slots.sort_unstable();
                self.page_of(slots.into_iter(), limit)
            }
            None => self.page_of(from..u32::try_from(self.slots.len()).unwrap_or(u32::MAX), limit),
        }
    }

    fn page_of(&self, slots: impl Iterator<Item = u32>, limit: usize) -> SessionPage {
        let mut sessions = Vec::new();
        for at in slots {
            let Some(route) = &self.slots[at].route else { continue };
            if sessions.len() == limit {
                return SessionPage { sessions, next: Some(u64::from(at)) };
            }
            sessions.push(self.info(route));
        }
        SessionPage { sessions, next: None }
    }

    /// Sessions, users with one, gateways.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.count as u64, self.users.len() as u64, self.lanes.len() as u64)
    }

    /// Asserts what must always hold: lists and counts agree, one route per device, every route on a living lane.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        let listed: usize = self.users.keys().map(|user| self.devices(*user).count()).sum();
        assert_eq!(listed, self.count, "every route is in its user's list");
        assert_eq!(self.slots.iter().filter(|slot| slot.route.is_some()).count(), self.count);
        for user in self.users.keys() {
            let mut devices: Vec<DeviceId> = self.devices(*user).map(|route| route.device).collect();
            assert!(!devices.is_empty(), "a user without a route is not listed");
            assert!(self.devices(*user).all(|route| route.user == *user));
            devices.sort_unstable();
            assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "one session for each device");
        }
        assert!(
            self.slots.iter().flat_map(|slot| &slot.route).all(|route| self.lane(route.lane()).is_some())
        );
    }

    fn info(&self, route: &Route) -> SessionInfo {
        let gateway = self.lane(route.lane()).map_or(GatewayId::default(), |at| self.lanes[at].hello.gateway);
        SessionInfo {
            user: route.user,
            device: route.device,
            gateway,
            session: route.session,
            attach: route.attach,
            attached_at_ms: i64::from(route.attached_at) * 1000,
            peer: route.peer(),
        }
    }

    /// The number of the next session.
    pub fn next_attach(&self) -> Attach {
        Attach::new(epoch_number(self.epoch, self.attaches + 1))
    }

    fn take_attach(&mut self) -> Attach {
        let attach = self.next_attach();
        self.attaches += 1;
        attach
    }

    /// Gateways are few: a scan is shorter than a hash.
    fn lane(&self, lane: Lane) -> Option<usize> {
        self.lanes.iter().position(|entry| entry.lane == lane)
    }

    fn route(&self, at: u32) -> &Route {
        self.slots[at].route.as_ref().expect("a listed slot holds a route")
    }

    fn devices(&self, user: UserId) -> impl Iterator<Item = &Route> {
        self.slots_of(user).map(|at| self.route(at))
    }

    fn slots_of(&self, user: UserId) -> impl Iterator<Item = u32> {
        let first = self.users.get(&user).copied().filter(|at| *at != NONE);
        std::iter::successors(first, |at| Some(self.slots[*at].next).filter(|at| *at != NONE))
    }

    fn find(&self, user: UserId, device: DeviceId) -> Option<u32> {
        let mut at = *self.users.get(&user)?;
        while at != NONE && self.route(at).device != device {
            at = self.slots[at].next;
        }
        (at != NONE).then_some(at)
    }

    fn insert(&mut self, arrival: &Arrival<'_>, attach: Attach, rank: Attach, now_ms: i64) {
        let (ip, port) = peer(arrival.peer);
        let route = Some(Route {
            user: arrival.user,
            device: arrival.device,
            session: arrival.session,
            attach,
            rank,
            attached_at: u32::try_from(now_ms / 1000).unwrap_or(0),
            issued_at: u32::try_from(arrival.issued_at_ms / 1000).unwrap_or(0),
            lane: NonZeroU32::new(arrival.lane.0).expect("lanes count from 1"),
            ip,
            port,
            kind: arrival.kind,
        });
        let first = self.users.get(&arrival.user).copied().unwrap_or(NONE);
        let at = if self.free == NONE {
            let at = u32::try_from(self.slots.len()).expect("sessions are far below 2^32");
            self.slots.push(Slot { route, next: first });
            at
        } else {
            let at = self.free;
            self.free = self.slots[at].next;
            self.slots[at] = Slot { route, next: first };
            at
        };
        self.users.insert(arrival.user, at);
        self.count += 1;
        let change =
            Change { user: arrival.user, device: arrival.device, attach: Some(attach), at_ms: now_ms };
        match self.changes.last_mut() {
            Some(last) if (last.user, last.device, last.attach) == (change.user, change.device, None) => {
                *last = change;
            }
            _ => self.changes.push(change),
        }
    }

    fn remove(&mut self, user: UserId, device: DeviceId) {
        if self.take_out(user, device) {
            self.changes.push(Change { user, device, attach: None, at_ms: self.now_ms });
        }
    }

    /// False when there is none.
    fn take_out(&mut self, user: UserId, device: DeviceId) -> bool {
        let Some(at) = self.find(user, device) else { return false };
        let next = self.slots[at].next;
        let first = self.users[&user];
        if first == at && next == NONE {
            self.users.remove(&user);
        } else if first == at {
            self.users.insert(user, next);
        } else {
            let mut before = first;
            while self.slots[before].next != at {
                before = self.slots[before].next;
            }
            self.slots[before].next = next;
        }
        self.slots[at] = Slot { route: None, next: self.free };
        self.free = at;
        self.count -= 1;
        true
    }
}
