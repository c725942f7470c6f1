//! Every metric of the gateway, named once. Each shard writes its own counters without locks; they are summed when scraped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gimbal_codec::CloseReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::session::{Counter, Counts};
use crate::transport::websocket::Refusal;

macro_rules! metrics {
    ($(#[$doc:meta])* $kind:ident: $($name:ident = $text:literal, $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub(crate) enum $kind { $(#[doc = $help] $name,)* }

        impl $kind {
            /// Each with its name and what it means.
            const ALL: &[(Self, &'static str, &'static str)] = &[$((Self::$name, $text, $help),)*];
        }
    };
}

metrics! {
    /// Things that only grow. Prefix `gimbal_gateway_`, suffix `_total`.
    Total:
    Accepted = "connections_accepted", "Connections accepted";
    SignedIn = "sign_ins", "Sessions that came online";
    BytesIn = "received_bytes", "Bytes received from clients";
    FramesIn = "frames_received", "Whole frames received from clients";
    Upgrades = "websocket_upgrades", "Connections that became WebSockets";
    TlsHandshakes = "tls_handshakes", "TLS handshakes completed";
    QuicHandshakes = "quic_handshakes", "QUIC handshakes completed";
    QuicRetries = "quic_retries", "QUIC clients that were told to show first that their address is theirs";
    QuicMoves = "quic_address_changes", "QUIC connections that went on from another address";
    QuicDatagramsIn = "quic_datagrams_received", "QUIC datagrams received";
    QuicDatagramsOut = "quic_datagrams_sent", "QUIC datagrams sent";
    Pings = "websocket_pings_received", "WebSocket pings, each answered";
    BytesOut = "sent_bytes", "Bytes that sockets took";
    Sends = "send_operations", "Send operations given to the kernel";
    Receives = "receive_completions", "Receive completions with bytes";
    Enters = "io_uring_enters", "Calls of io_uring_enter";
    Turns = "turns", "Turns of the shards";
    Rings = "doorbell_rings", "System calls by which other threads woke a shard";
    NoBuffers = "receive_no_buffers", "Receives that ended because no receive buffer was free";
    InboxItems = "inbox_items", "Items taken from the inboxes";
    RoomFrames = "room_frames_received", "Room frames from control, once per shard with members";
    RoomQueued = "room_frames_queued", "Room frames queued to members";
    SignalsQueued = "signals_queued", "Signals queued to sessions";
    PushQueued = "push_frames_queued", "Frames of pushes to all queued to sessions";
    Announced = "sessions_announced", "Sessions announced to control again";
    UpItems = "link_items_submitted", "Items given to the link";
    UpFull = "link_full", "Batches the link refused";
}

metrics! {
    /// Things that rise and fall. Prefix `gimbal_gateway_`.
    Gauge:
    Connections = "connections", "Connections, signed in or not";
    Online = "sessions_online", "Sessions signed in";
    Rooms = "rooms", "Rooms with a member, by shard";
    RoomMembers = "room_members", "Memberships of rooms";
    PartialBytes = "partial_frame_bytes", "Memory of frames that have not fully arrived";
    Handshaking = "tls_handshakes_under_way", "Connections whose TLS handshake is not completed";
    QuicConnections = "quic_connections", "QUIC connections, with those whose handshake or end is under way";
    QuicHandshaking = "quic_handshakes_under_way", "QUIC connections whose handshake is not completed";
    QueueBytes = "queue_bytes", "Bytes that wait for sockets at this moment, those of a room or of all once";
    HeldBytes = "held_bytes", "What connections hold against memory_max: queues, partial frames, 512 bytes each, 4 KiB for TLS, and what QUIC needs";
}

metrics! {
    /// What shards drop; together with what sessions drop, label `what` of `gimbal_gateway_dropped_total`.
    Drop:
    RoomShed = "room_frame_shed", "A slow reader was not given a room frame";
    SignalShed = "signal_shed", "A slow reader was not given a signal";
    SignalOverWork = "signal_over_work", "A signal in a turn that had given too many already";
    AllShed = "push_to_all_shed", "A slow reader was not given a push to all";
    AllOverlap = "push_to_all_overlap", "Too many pushes to all were under way";
    InboxFull = "inbox_full", "An item from another thread found no room";
    LinkFull = "link_full", "An item for control found no room";
    RoomEmpty = "room_without_members", "A room frame for a room that has no members here any more";
    OverLimit = "connection_over_limit", "A connection beyond the limit";
    AddressFull = "connection_per_address", "A connection beyond the limit of its address";
    PrefixFull = "connection_per_prefix", "A connection beyond the limit of its range of addresses";
    MemoryFull = "connection_over_memory", "A connection while memory_max was reached";
    PartialOverMemory = "partial_over_memory", "A connection whose frame was growing while memory_max, or half of it by such frames, was reached";
    MemoryTight = "shed_over_memory", "An offer of frames that may be lost while memory_max was near";
    BadProxyHeader = "proxy_header_bad", "A connection of a balancer without a PROXY header";
    SignInOverRate = "sign_in_over_rate", "A sign-in beyond the budget";
    SignInInDebt = "sign_in_in_debt", "A sign-in of a device that was closed for its rate and has not made up for it";
    HandshakeOverLimit = "tls_handshake_over_limit", "A connection beyond the limit of TLS handshakes under way";
    TlsFailed = "tls_failed", "A connection that spoke no TLS, or not such as we do";
    QuicIgnored = "quic_datagram_ignored", "A UDP datagram that belongs to no QUIC connection and begins none";
    QuicRefused = "quic_refused", "A QUIC client that came while nobody is accepted";
    QuicHandshakeOverLimit = "quic_handshake_over_limit", "A QUIC client beyond the limit of handshakes under way";
    QuicHandshakeFailed = "quic_handshake_failed", "A QUIC handshake that failed: no such protocol, no trust, or not QUIC as we speak it";
    QuicHandshakeDeadline = "quic_handshake_deadline", "A QUIC handshake that was not completed in time";
    QuicViolation = "quic_violation", "A QUIC connection whose peer broke the protocol, as by a stream too many";
    QuicStreamReset = "quic_stream_reset", "A QUIC connection whose peer broke its stream off";
    QuicSilent = "quic_silent", "A QUIC connection whose peer acknowledged nothing for a minute";
    NoDescriptor = "accept_no_descriptor", "Accepting paused because no descriptor or memory was left";
    PeerGone = "peer_gone", "A connection that its peer ended or broke";
}

/// Codes with which calls of clients are refused: label `code` of `gimbal_gateway_refused_total`.
const REFUSED_CODES: [i32; 22] = [
    2, 10000, 10001, 10200, 10301, 11001, 11002, 11003, 11004, 11005, 11006, 11007, 11008, 11009, 11010,
    11011, 11012, 11013, 11014, 11020, 11021, 11022,
];

/// Counters of one shard. One thread writes, any thread reads.
#[derive(Debug)]
pub(crate) struct ShardMetrics {
    totals: [AtomicU64; Total::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    dropped: [AtomicU64; Drop::ALL.len()],
    /// In the order of [`Counts::events`].
    events: Vec<AtomicU64>,
    closed: [AtomicU64; CloseReason::ALL.len()],
    /// The last one counts all other codes.
    refused: [AtomicU64; REFUSED_CODES.len() + 1],
    upgrades_refused: [AtomicU64; Refusal::ALL.len()],
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
            dropped: std::array::from_fn(|_| AtomicU64::new(0)),
            events: Counts::default().events().map(|_| AtomicU64::new(0)).collect(),
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            upgrades_refused: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Adds without a locked instruction: only the owning shard writes.
fn bump(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl ShardMetrics {
    pub(crate) fn add(&self, total: Total, count: u64) {
        bump(&self.totals[total as usize], count);
    }

    /// For totals that are counted elsewhere.
    pub(crate) fn set_total(&self, total: Total, value: u64) {
        self.totals[total as usize].store(value, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, what: Drop, count: u64) {
        bump(&self.dropped[what as usize], count);
    }

    /// A request for a WebSocket was not granted.
    pub(crate) fn upgrade_refused(&self, refusal: Refusal) {
        bump(&self.upgrades_refused[refusal as usize], 1);
    }

    /// For drops that are counted elsewhere.
    pub(crate) fn set_dropped(&self, what: Drop, value: u64) {
        self.dropped[what as usize].store(value, Ordering::Relaxed);
    }

    /// Publishes what sessions counted.
    pub(crate) fn publish(&self, counts: &Counts) {
        for (cell, (_, count)) in self.events.iter().zip(counts.events()) {
            cell.store(count, Ordering::Relaxed);
        }
        for (cell, (_, count)) in self.closed.iter().zip(counts.closed()) {
            cell.store(count, Ordering::Relaxed);
        }
        let mut refused = [0; REFUSED_CODES.len() + 1];
        for (code, count) in counts.refused() {
            let place = REFUSED_CODES.iter().position(|&known| known == code);
            refused[place.unwrap_or(REFUSED_CODES.len())] += count;
        }
        for (cell, count) in self.refused.iter().zip(refused) {
            cell.store(count, Ordering::Relaxed);
        }
    }
}

/// Counters of a gateway; cheap to clone, and readable after the gateway has ended.
#[derive(Clone, Debug)]
pub struct Metrics {
    shards: Arc<[Arc<ShardMetrics>]>,
}

impl Metrics {
    pub(crate) fn new(shards: Vec<Arc<ShardMetrics>>) -> Self {
        Self { shards: shards.into() }
    }

    /// Adds all metrics to `registry`, which then reads them at every scrape.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Connections now.
    pub fn connections(&self) -> u64 {
        self.gauge(Gauge::Connections)
    }

    /// Sessions signed in now.
    pub fn sessions_online(&self) -> u64 {
        self.gauge(Gauge::Online)
    }

    /// Memory of frames that have not fully arrived, in bytes.
    pub fn partial_frame_bytes(&self) -> u64 {
        self.gauge(Gauge::PartialBytes)
    }

    /// What connections hold against `memory_max`, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.gauge(Gauge::HeldBytes)
    }

    /// The sum of a counter by its name without prefix and suffix, for tests and reports; `None` if there is no such.
    pub fn total(&self, name: &str) -> Option<u64> {
        let (total, ..) = Total::ALL.iter().find(|(_, text, _)| *text == name)?;
        Some(self.sum(|shard| &shard.totals[*total as usize]))
    }

    /// How much was dropped, or how often a session counted something, by the label `what`; `None` if there is no such.
    pub fn dropped(&self, what: &str) -> Option<u64> {
        if let Some((drop, ..)) = Drop::ALL.iter().find(|(_, text, _)| *text == what) {
            return Some(self.sum(|shard| &shard.dropped[*drop as usize]));
        }
        let place = Counts::default().events().position(|(name, _)| name == what)?;
        Some(self.sum(|shard| &shard.events[place]))
    }

    /// Connections closed for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        let place = CloseReason::ALL.iter().position(|&other| other == reason);
        self.sum(|shard| &shard.closed[place.expect("ALL holds every reason")])
    }

    /// Requests for a WebSocket that were refused, by the label `reason`; `None` if there is no such.
    pub fn upgrades_refused(&self, reason: &str) -> Option<u64> {
        let &refusal = Refusal::ALL.iter().find(|refusal| refusal.label() == reason)?;
        Some(self.sum(|shard| &shard.upgrades_refused[refusal as usize]))
    }

    fn gauge(&self, gauge: Gauge) -> u64 {
        self.sum(|shard| &shard.gauges[gauge as usize])
    }

    fn sum(&self, cell: impl Fn(&ShardMetrics) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| cell(shard).load(Ordering::Relaxed)).sum()
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for &(total, text, help) in Total::ALL {
            let value = self.sum(|shard| &shard.totals[total as usize]);
            encode_counter(&mut encoder, text, help, value)?;
        }
        for &(gauge, text, help) in Gauge::ALL {
            let name = prefixed(text);
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(self.gauge(gauge)).encode(metric)?;
        }
        let sum_events = |place: usize| self.sum(|shard| &shard.events[place]);
        encode_counter(
            &mut encoder,
            "messages_delivered",
            "Stored messages queued live",
            sum_events(Counter::Delivered as usize),
        )?;
        encode_counter(
            &mut encoder,
            "sessions_behind",
            "Times a session fell behind",
            sum_events(Counter::Behind as usize),
        )?;
        let events = Counts::default();
        let events = events.events().enumerate();
        let events = events
            .filter(|(place, _)| !NOT_DROPS.contains(place))
            .map(|(place, (name, _))| (name.to_owned(), sum_events(place)));
        let drops = Drop::ALL
            .iter()
            .map(|&(drop, text, _)| (text.to_owned(), self.sum(|shard| &shard.dropped[drop as usize])));
        encode_family(
            &mut encoder,
            "dropped",
            "Everything dropped, shed or out of the ordinary",
            "what",
            drops.chain(events),
        )?;
        let closed = CloseReason::ALL.iter().map(|&reason| (reason.text().to_owned(), self.closed(reason)));
        encode_family(&mut encoder, "closed", "Connections closed by the gateway", "reason", closed)?;
        let refused = (0..=REFUSED_CODES.len()).map(|place| {
            let code = REFUSED_CODES.get(place).map_or("other".to_owned(), ToString::to_string);
            (code, self.sum(|shard| &shard.refused[place]))
        });
        let upgrades = Refusal::ALL.iter().map(|&refusal| {
            (refusal.label().to_owned(), self.sum(|shard| &shard.upgrades_refused[refusal as usize]))
        });
        encode_family(
            &mut encoder,
            "websocket_refused",
            "Requests for a WebSocket that were refused",
            "reason",
            upgrades,
        )?;
        encode_family(
            &mut encoder,
            "refused",
            "Calls answered with a code that is not success",
            "code",
            refused,
        )
    }
}

/// Events of sessions that have a metric of their own.
const NOT_DROPS: [usize; 2] = [Counter::Delivered as usize, Counter::Behind as usize];

fn prefixed(name: &str) -> String {
    format!("gimbal_gateway_{name}")
}

fn encode_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), fmt::Error> {
    let name = prefixed(name);
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

fn encode_family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = (String, u64)>,
) -> Result<(), fmt::Error> {
    let name = prefixed(name);
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for (value, count) in values {
        let labels = [(label, value.as_str())];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_and_every_metric_is_scraped_once() {
        let shards: Vec<_> = (0..2).map(|_| Arc::new(ShardMetrics::default())).collect();
        let metrics = Metrics::new(shards.clone());
        shards[0].add(Total::Accepted, 2);
        shards[1].add(Total::Accepted, 3);
        shards[1].dropped(Drop::RoomShed, 7);
        let mut counts = Counts::default();
        counts.add_closed(CloseReason::Idle);
        counts.add_refused(12345);
        shards[0].publish(&counts);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "gimbal_gateway_connections_accepted_total 5",
            "gimbal_gateway_dropped_total{what=\"room_frame_shed\"} 7",
            "gimbal_gateway_closed_total{reason=\"idle\"} 1",
            "gimbal_gateway_refused_total{code=\"other\"} 1",
        ] {
            assert_eq!(text.lines().filter(|other| *other == line).count(), 1, "{line} in {text}");
        }
    }
}
