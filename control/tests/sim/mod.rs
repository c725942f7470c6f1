//! Deterministic simulation: one seed makes a world of clients, gateways, a store that crashes around its commits, a
//! network that loses and doubles calls, and a clock that jumps. After every step the promises are checked.
//!
//! A failure names its seed: `GIMBAL_SIM_SEED=<seed> cargo test --release -p gimbal-control sim` replays it alone.

mod check;
pub(crate) mod faults;
pub(crate) mod rng;
mod workload;
mod world;

use world::World;

/// Steps of one world: long enough for several crashes and restarts.
const STEPS: u32 = 400;
/// Worlds of an ordinary run.
const SEEDS: u64 = 60;
/// Seeds that once found a fault are replayed for ever.
const KEPT: [u64; 1] = [1];

/// How many messages found their answer forgotten.
fn run(seed: u64) -> u32 {
    let result = std::panic::catch_unwind(|| {
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step(step);
            check::after_step(&world);
        }
        world.settle();
        check::at_the_end(&world);
        world.too_old
    });
    result.unwrap_or_else(|_| panic!("seed {seed} breaks a promise: GIMBAL_SIM_SEED={seed} replays it"))
}

#[test]
fn promises_hold_through_crashes_losses_repeats_and_clock_jumps() {
    if let Ok(seed) = std::env::var("GIMBAL_SIM_SEED") {
        run(seed.parse().expect("a seed is a number"));
        return;
    }
    let too_old: u32 = KEPT.into_iter().chain(1000..1000 + SEEDS).map(run).sum();
    assert!(too_old > 0, "some answers were forgotten while their senders still asked");
}

#[test]
fn the_same_seed_makes_the_same_world() {
    let log = |seed| {
        let mut world = World::new(seed);
        (0..100).for_each(|step| world.step(step));
        world.log
    };
    assert_eq!(log(7), log(7));
    assert_ne!(log(7), log(8));
}
