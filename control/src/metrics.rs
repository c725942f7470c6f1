//! Every metric of the control plane, named once. Counters get `_total` appended on the page.

use std::fmt;
use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        TypedMetric as _,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};

/// Before every name of this crate.
const PREFIX: &str = "gimbal_control";

/// A call by its method and gRPC code.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct CallLabels {
    pub(crate) method: &'static str,
    pub(crate) code: &'static str,
}

/// A token that was checked, by how and what came of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct AuthLabels {
    pub(crate) kind: &'static str,
    pub(crate) outcome: &'static str,
}

/// How a token was checked.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct KindLabels {
    pub(crate) kind: &'static str,
}

/// A method alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct MethodLabels {
    pub(crate) method: &'static str,
}

/// A stage of the writer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct StageLabels {
    pub(crate) stage: &'static str,
}

/// Why something was refused or dropped.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub(crate) reason: &'static str,
}

type ByMethod = Family<MethodLabels, Histogram, fn() -> Histogram>;
type ByKind = Family<KindLabels, Histogram, fn() -> Histogram>;

/// What the edge counts by itself; what writer and store count is read when the page is asked for.
pub struct Metrics {
    registry: Registry,
    pub(crate) calls: Family<CallLabels, Counter>,
    pub(crate) call_seconds: ByMethod,
    pub(crate) call_panics: Counter,
    pub(crate) links: Gauge,
    pub(crate) link_streams: Counter,
    pub(crate) link_ends: Family<ReasonLabels, Counter>,
    pub(crate) link_up_items: Counter,
    pub(crate) link_up_retries: Counter,
    pub(crate) link_down_items: Counter,
    pub(crate) dropped: Family<ReasonLabels, Counter>,
    pub(crate) room_publishes: Counter,
    pub(crate) room_frames: Counter,
    pub(crate) signals: Counter,
    pub(crate) push_all: Counter,
    pub(crate) auth_checks: Family<AuthLabels, Counter>,
    pub(crate) auth_seconds: ByKind,
    pub(crate) auth_key_reloads: Family<ReasonLabels, Counter>,
    pub(crate) auth_breaker_open: Gauge,
}

/// Figures that live elsewhere, read at each scrape: name, help, value.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Counter(u64),
    Gauge(i64),
    /// Counters by reason.
    Reasons(Vec<(&'static str, u64)>),
    /// Seconds by stage.
    Stages(Vec<(&'static str, Histogram)>),
    /// Counters by labels of their own.
    Labelled(Vec<(Vec<(&'static str, String)>, u64)>),
}

type Source = Arc<dyn Fn() -> Vec<Sample> + Send + Sync>;

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let r = &mut registry;
        // 0.1 ms to 26 s: below is noise of the runtime, above is a deadline.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-4, 2.0, 18));
        let call_seconds = Family::new_with_constructor(seconds);
        // 1 us to 17 s: a signature takes some microseconds, a service up to its timeout.
        let check_seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-6, 4.0, 13));
        let auth_seconds = Family::new_with_constructor(check_seconds);
        Self {
            calls: add(r, "grpc_calls", "gRPC calls by method and code", Family::default()),
            call_seconds: add(r, "grpc_call_seconds", "Time to the answer of a gRPC call", call_seconds),
            call_panics: add(r, "grpc_panics", "gRPC calls that ended in a panic", Counter::default()),
            links: add(r, "links", "Gateways linked now, in this process or over gRPC", Gauge::default()),
            link_streams: add(r, "link_streams", "Link connections since start", Counter::default()),
            link_ends: add(r, "link_ends", "Link streams that ended, by reason", Family::default()),
            link_up_items: add(r, "link_up_items", "Items from gateways", Counter::default()),
            link_up_retries: add(
                r,
                "link_up_retries",
                "Batches from remote gateways that waited",
                Counter::default(),
            ),
            link_down_items: add(r, "link_down_items", "Items sent to remote gateways", Counter::default()),
            dropped: add(r, "dropped", "Items dropped, by reason", Family::default()),
            room_publishes: add(r, "room_publishes", "Publishes to rooms", Counter::default()),
            room_frames: add(r, "room_frames", "Room frames taken by gateways", Counter::default()),
            signals: add(r, "signals", "Signals handed to other gateways", Counter::default()),
            push_all: add(r, "push_all", "Pushes to all sessions", Counter::default()),
            auth_checks: add(
                r,
                "auth_checks",
                "Tokens of others that were checked, by outcome",
                Family::default(),
            ),
            auth_seconds: add(r, "auth_check_seconds", "Time to check a token of others", auth_seconds),
            auth_key_reloads: add(
                r,
                "auth_key_reloads",
                "Changes of the issuer's keys: new, or broken and not taken",
                Family::default(),
            ),
            auth_breaker_open: add(
                r,
                "auth_breaker_open",
                "1 while the authenticator is left alone",
                Gauge::default(),
            ),
            registry,
        }
    }

    /// Adds figures that are read at each scrape. Only before the first one.
    pub(crate) fn read_from(&mut self, source: Source) {
        self.registry.register_collector(Box::new(External(source)));
    }

    /// Counts `n` items that nobody will get.
    pub(crate) fn drop_items(&self, reason: &'static str, n: u64) {
        self.dropped.get_or_create(&ReasonLabels { reason }).inc_by(n);
    }

    pub(crate) fn link_ended(&self, reason: &'static str) {
        self.link_ends.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Appends the page without its end mark.
    pub(crate) fn render(&self, page: &mut String) {
        text::encode_registry(page, &self.registry).expect("a string takes all that is written");
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

struct External(Source);

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("External")
    }
}

impl Collector for External {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Sample { name, help, value } in (self.0)() {
            match value {
                Value::Counter(value) => {
                    let metric = ConstCounter::new(value);
                    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
                }
                Value::Gauge(value) => {
                    let metric = ConstGauge::new(value);
                    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
                }
                Value::Reasons(reasons) => {
                    let kind = ConstCounter::new(0_u64).metric_type();
                    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
                    for (reason, value) in reasons {
                        let labels = ReasonLabels { reason };
                        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                    }
                }
                Value::Stages(stages) => {
                    let mut family = encoder.encode_descriptor(name, help, None, Histogram::TYPE)?;
                    for (stage, seconds) in stages {
                        seconds.encode(family.encode_family(&StageLabels { stage })?)?;
                    }
                }
                Value::Labelled(counters) => {
                    let kind = ConstCounter::new(0_u64).metric_type();
                    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
                    for (labels, value) in counters {
                        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_own_and_foreign_figures() {
        let mut metrics = Metrics::new();
        metrics.read_from(Arc::new(|| {
            vec![
                Sample { name: "commits", help: "Commits", value: Value::Counter(7) },
                Sample {
                    name: "refused",
                    help: "Refused",
                    value: Value::Reasons(vec![("busy", 2), ("stale", 0)]),
                },
                Sample { name: "sessions", help: "Sessions", value: Value::Gauge(3) },
            ]
        }));
        metrics.calls.get_or_create(&CallLabels { method: "Messages/Send", code: "OK" }).inc();
        metrics.call_seconds.get_or_create(&MethodLabels { method: "Messages/Send" }).observe(0.01);
        metrics.drop_items("rooms_full", 4);
        let mut page = String::new();
        metrics.render(&mut page);
        for line in [
            "gimbal_control_grpc_calls_total{method=\"Messages/Send\",code=\"OK\"} 1",
            "gimbal_control_grpc_call_seconds_count{method=\"Messages/Send\"} 1",
            "gimbal_control_dropped_total{reason=\"rooms_full\"} 4",
            "gimbal_control_commits_total 7",
            "gimbal_control_refused_total{reason=\"busy\"} 2",
            "gimbal_control_sessions 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("# EOF"));
    }
}
