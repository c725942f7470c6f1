//! Parts of a shard; what is measured and how is in `src/parts.rs`.

use criterion::{criterion_group, criterion_main};
use gimbal_benches::parts::{fan_out, inbox, sessions, timers};

criterion_group!(benches, sessions, fan_out, timers, inbox);
criterion_main!(benches);
