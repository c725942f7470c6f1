//! Who may come: connections by where they come from, counted over all shards, and sign-ins by a budget.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use gimbal_codec::{CloseReason, DeviceId, SessionKey};
use gimbal_rpc::link::Up;
use hashbrown::HashMap;

use super::Shard;
use super::memory::Room;
use super::proxied::Named;
use crate::carrier::Carrier;
use crate::metrics::Drop;
use crate::session::Moment;
use crate::transport::prefix::{Prefix, Source};
use crate::transport::proxy::NoProxyHeader;

/// Parts of the table of sources; a shard waits for another only when both accept into the same one.
const PARTS: usize = 64;
/// Longest time for which clients are told to stay away, in ms; more would look like an outage.
const RETRY_AFTER_MS_MAX: u64 = 60_000;

/// Why a connection is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crowded {
    /// Too many from one host.
    Host,
    /// Too many from one range.
    Range,
}

/// Connections by source, of all shards. It holds two entries for each source that is connected, and nothing else.
#[derive(Debug)]
pub(crate) struct Sources {
    parts: Vec<Mutex<Part>>,
    bounds: RwLock<Bounds>,
}

#[derive(Debug)]
struct Bounds {
    hosts_max: u32,
    ranges_max: u32,
    exempt: Vec<Prefix>,
}

/// A source of either kind.
type Part = HashMap<(Source, Kind), u32>;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Host,
    Range,
}

impl Sources {
    /// At most `hosts_max` connections of one host and `ranges_max` of one range, 0: any number; those of `exempt` do not
    /// count.
    pub(crate) fn new(hosts_max: u32, ranges_max: u32, exempt: Vec<Prefix>) -> Self {
        let bounds = RwLock::new(Bounds { hosts_max, ranges_max, exempt });
        Self { parts: (0..PARTS).map(|_| Mutex::default()).collect(), bounds }
    }

    /// From now on; connections that are there stay, counted or not as they were.
    pub(crate) fn set(&self, hosts_max: u32, ranges_max: u32, exempt: Vec<Prefix>) {
        let bounds = Bounds { hosts_max, ranges_max, exempt };
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// Counts a connection; what is returned is to be given to [`Self::leave`] when it ends. `None`: it does not count.
    ///
    /// # Errors
    /// [`Crowded`]; nothing was counted.
    pub(crate) fn enter(&self, peer: IpAddr) -> Result<Option<Source>, Crowded> {
        let bounds = self.bounds.read().unwrap_or_else(PoisonError::into_inner);
        let is_bounded = bounds.hosts_max > 0 || bounds.ranges_max > 0;
        if !is_bounded || bounds.exempt.iter().any(|prefix| prefix.holds(peer)) {
            return Ok(None);
        }
        let source = Source::of(peer);
        if !self.add((source, Kind::Host), bounds.hosts_max) {
            return Err(Crowded::Host);
        }
        if !self.add((source.range(), Kind::Range), bounds.ranges_max) {
            self.take((source, Kind::Host));
            return Err(Crowded::Range);
        }
        Ok(Some(source))
    }

    /// A connection of `source` has ended.
    pub(crate) fn leave(&self, source: Source) {
        self.take((source, Kind::Host));
        self.take((source.range(), Kind::Range));
    }

    fn add(&self, key: (Source, Kind), max: u32) -> bool {
        let mut part = self.part(key);
        let count = part.entry(key).or_default();
        let has_room = max == 0 || *count < max;
        *count += u32::from(has_room);
        has_room
    }

    fn take(&self, key: (Source, Kind)) {
        let mut part = self.part(key);
        let count = part.get_mut(&key).expect("who leaves has entered");
        *count -= 1;
        if *count == 0 {
            part.remove(&key);
        }
    }

    fn part(&self, (source, _): (Source, Kind)) -> MutexGuard<'_, Part> {
        self.parts[source.spread() % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A budget of sign-ins. Those beyond it are told when to come back, one after the other at the same rate, so that a crowd that
/// comes at once is back in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    /// Microseconds between two; 0: no bound.
    interval_us: u64,
    /// Microseconds' worth of them at once.
    window_us: u64,
    /// Up to where the budget is used.
    used_us: u64,
    /// Up to where those who were sent away fill it again.
    promised_us: u64,
}

impl Admission {
    /// `per_second` (0: any number) sustained, a second's worth at once.
    pub(super) fn new(per_second: u32) -> Self {
        let interval_us = 1_000_000_u64.checked_div(per_second.into()).unwrap_or(0);
        Self { interval_us, window_us: 1_000_000, used_us: 0, promised_us: 0 }
    }

    /// Another rate from now on.
    pub(super) fn set(&mut self, per_second: u32) {
        self.interval_us = Self::new(per_second).interval_us;
    }

    /// Takes one sign-in.
    ///
    /// # Errors
    /// When there is no room: milliseconds after which there is.
    pub(super) fn take(&mut self, now: Moment) -> Result<(), u64> {
        let now_us = now.as_ms() * 1000;
        let used_us = self.used_us.max(now_us);
        if used_us + self.interval_us <= now_us + self.window_us || self.interval_us == 0 {
            self.used_us = used_us + self.interval_us;
            return Ok(());
        }
        self.promised_us = self.promised_us.max(used_us) + self.interval_us;
        Err(((self.promised_us - now_us) / 1000).min(RETRY_AFTER_MS_MAX))
    }
}

/// Where a connection that was just accepted comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// A client, counted if it counts.
    Client(Option<Source>),
    /// A balancer, which is yet to say for whom it speaks.
    Balancer,
}

impl<C: Carrier> Shard<C> {
    /// Whether there is room for one more, and for one from there; counted, if not.
    pub(super) fn admit(&mut self, socket: &C::Socket) -> Option<From> {
        if self.memory_room() == Room::Full {
            self.metrics.dropped(Drop::MemoryFull, 1);
            return None;
        }
        // A peer that is gone already is nobody's.
        let Some(peer) = self.carrier.peer(socket) else { return Some(From::Client(None)) };
        if self.proxied.is_balancer(peer.ip()) {
            return Some(From::Balancer);
        }
        self.count_source(peer.ip()).map(From::Client)
    }

    /// Gives back what [`Self::admit`] has counted.
    pub(super) fn forget_source(&mut self, from: From) {
        if let From::Client(Some(source)) = from {
            self.sources.leave(source);
        }
    }

    /// The connection that was admitted has its slot.
    pub(super) fn entered(&mut self, key: SessionKey, from: From) {
        match from {
            From::Balancer => self.proxied.begin(key),
            From::Client(source) => self.set_source(key, source),
        }
    }

    /// The connection has ended.
    pub(super) fn left(&mut self, key: SessionKey, source: Source, is_counted: bool) {
        self.proxied.end(key);
        if is_counted {
            self.sources.leave(source);
        }
    }

    /// How many of the bytes that have come are not the client's; `None`: none are, or the connection was ended.
    pub(super) fn skip_proxy_header(&mut self, key: SessionKey, chunk: &mut C::Chunk) -> Option<usize> {
        if !self.proxied.is_open() {
            return Some(0);
        }
        let bytes = self.carrier.bytes_mut(chunk);
        match self.proxied.take(key, bytes) {
            Ok(None) => Some(0),
            Ok(Some(Named::NotYet)) => None,
            Ok(Some(Named::Now { client: None, skip })) => Some(skip),
            Ok(Some(Named::Now { client: Some(client), skip })) => match self.count_source(client.ip()) {
                Some(source) => {
                    self.set_source(key, source);
                    Some(skip)
                }
                None => {
                    self.end(key, true);
                    None
                }
            },
            Err(NoProxyHeader) => {
                self.metrics.dropped(Drop::BadProxyHeader, 1);
                self.end(key, true);
                None
            }
        }
    }

    /// Passes a sign-in on, or sends it away with the time at which there is room again. What the link does not take anyway
    /// uses nothing up.
    pub(super) fn admit_sign_in(&mut self, key: SessionKey, sign_in: Up) {
        let debt_ms = match &sign_in {
            Up::SignIn { device, .. } => self.live.debts.left_ms(*device, self.now),
            _ => None,
        };
        let admitted = match debt_ms {
            Some(left_ms) => Err((Drop::SignInInDebt, left_ms)),
            None if self.is_link_up() => {
                self.admission.take(self.now).map_err(|after_ms| (Drop::SignInOverRate, after_ms))
            }
            None => Ok(()),
        };
        match admitted {
            Ok(()) => self.up.push(sign_in),
            Err((why, after_ms)) => {
                self.metrics.dropped(why, 1);
                self.retry_hint_ms = Some(after_ms);
                self.call(key, |session, turn| session.handle_not_submitted(&sign_in, turn));
                self.retry_hint_ms = None;
            }
        }
    }

    /// As for a sign-in, of a device that only control could name.
    pub(super) fn refuse_debt(&mut self, key: SessionKey, device: DeviceId) {
        if let Some(left_ms) = self.live.debts.left_ms(device, self.now) {
            self.metrics.dropped(Drop::SignInInDebt, 1);
            self.retry_hint_ms = Some(left_ms);
            self.call(key, |_, _| Err(CloseReason::Overloaded));
            self.retry_hint_ms = None;
        }
    }

    fn count_source(&mut self, peer: IpAddr) -> Option<Option<Source>> {
        let crowded = match self.sources.enter(peer) {
            Ok(source) => return Some(source),
            Err(Crowded::Host) => Drop::AddressFull,
            Err(Crowded::Range) => Drop::PrefixFull,
        };
        self.metrics.dropped(crowded, 1);
        None
    }

    fn set_source(&mut self, key: SessionKey, source: Option<Source>) {
        match (self.conns.get_mut(key), source) {
            (Some(conn), Some(source)) => {
                conn.source = source;
                conn.is_counted = true;
            }
            (None, Some(source)) => self.sources.leave(source),
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn held(sources: &Sources) -> usize {
        sources.parts.iter().map(|part| part.lock().unwrap().len()).sum()
    }

    #[test]
    fn hosts_and_ranges_are_bounded_and_leave_nothing_behind() {
        let sources = Sources::new(2, 3, vec!["10.0.0.0/8".parse().unwrap()]);
        let enter = |text| sources.enter(ip(text));
        let mut inside = vec![enter("192.0.2.1").unwrap().unwrap(), enter("192.0.2.1").unwrap().unwrap()];
        assert_eq!(enter("192.0.2.1"), Err(Crowded::Host));
        inside.push(enter("192.0.2.2").unwrap().unwrap());
        assert_eq!(enter("192.0.2.3"), Err(Crowded::Range), "and its host is not counted either");
        assert_eq!(held(&sources), 3);
        inside.push(enter("192.0.3.1").unwrap().unwrap());
        assert!((0..9).all(|_| enter("10.1.2.3") == Ok(None)));
        sources.leave(inside.swap_remove(0));
        inside.push(enter("192.0.2.3").unwrap().unwrap());
        inside.drain(..).for_each(|source| sources.leave(source));
        assert_eq!(held(&sources), 0);
    }

    #[test]
    fn a_host_of_ipv6_is_its_whole_64() {
        let sources = Sources::new(1, 0, Vec::new());
        sources.enter(ip("2001:db8::1")).unwrap();
        assert_eq!(sources.enter(ip("2001:db8::ffff:1")), Err(Crowded::Host));
        assert!(sources.enter(ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn a_crowd_is_sent_away_in_order_and_finds_room_when_it_is_back() {
        let mut admission = Admission::new(100);
        let start = Moment::from_ms(5000);
        let taken = (0..100).filter(|_| admission.take(start).is_ok()).count();
        assert_eq!(taken, 100, "a second's worth");
        let told: Vec<u64> = (0..200).map(|_| admission.take(start).unwrap_err()).collect();
        assert_eq!((told[0], told[1], told[199]), (1010, 1020, 3000));
        for after in told {
            assert_eq!(admission.take(start.plus_ms(after)), Ok(()), "{after}");
        }
        let mut slow = Admission::new(1);
        assert_eq!(slow.take(start), Ok(()));
        assert_eq!((0..1000).map(|_| slow.take(start).unwrap_err()).max(), Some(RETRY_AFTER_MS_MAX));
        let mut open = Admission::new(0);
        assert!((0..10_000).all(|_| open.take(start).is_ok()));
    }
}
