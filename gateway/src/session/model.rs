//! The session between a model of control, a lossy link, a slow socket and a client that does only what it must.
//!
//! The client syncs when it is told `behind`, and otherwise by whim; it never tries again by itself. So whatever the
//! session fails to tell shows up as a message that never arrives. Checked in every step: no message before the one that
//! precedes it, bounded memory, `behind` never without cause. Checked in the calm after the storm: every message arrived.

mod client;
mod control;
mod world;

use world::{Step, World};

/// A small fast generator (splitmix64, Steele et al. 2014), so that a seed names a run on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Steps that are picked by chance, each as often as it stands here.
const STORM: &[Step] = &[
    Step::Append,
    Step::Append,
    Step::Append,
    Step::ControlTakes,
    Step::ControlTakes,
    Step::ControlTakes,
    Step::PageIsRead,
    Step::PageArrives,
    Step::ItemArrives,
    Step::ItemArrives,
    Step::ItemArrives,
    Step::ShardTakes,
    Step::ShardTakes,
    Step::ShardTakes,
    Step::ShardTakes,
    Step::SocketTakes,
    Step::SocketTakes,
    Step::SocketTakes,
    Step::RoomFrame,
    Step::WalkGoes,
    Step::WalkGoes,
];

/// Steps that are picked rarely.
const TROUBLE: &[Step] = &[
    Step::ClientSyncs,
    Step::ClientSyncs,
    Step::ClientSyncs,
    Step::ClientBeats,
    Step::ReserveFills,
    Step::ReserveFills,
    Step::ClientReconnects,
    Step::LinkBreaks,
    Step::LinkBreaks,
    Step::LinkMends,
    Step::LinkMends,
    Step::LinkMends,
    Step::ControlRestarts,
    Step::InboxOverflows,
    Step::SubmitFails,
    Step::Trim,
    Step::SyncFails,
    Step::Time,
];

fn run(seed: u64, keeps_cursor: bool) -> World {
    let mut random = Random(seed);
    let mut world = World::new(keeps_cursor, random.next());
    // Some runs see more trouble than others, some clients read more slowly, some lanes lag.
    let calm = [4, 16, 1000][random.below(3)];
    let (slowness, lag) = (1 + random.below(6), 1 + random.below(6));
    for _ in 0..250 {
        let steps = if random.below(calm) == 0 { TROUBLE } else { STORM };
        let step = steps[random.below(steps.len())];
        let one_of = match step {
            Step::SocketTakes => slowness,
            Step::ItemArrives => lag,
            _ => 1,
        };
        if random.below(one_of) == 0 {
            world.step(step);
        }
    }
    world.settle();
    world
}

/// Runs all seeds and says which one failed.
fn explore(seeds: std::ops::Range<u64>, keeps_cursor: bool) -> Vec<World> {
    seeds
        .map(|seed| {
            std::panic::catch_unwind(|| run(seed, keeps_cursor))
                .unwrap_or_else(|_| panic!("seed {seed}, keeps_cursor {keeps_cursor}"))
        })
        .collect()
}

#[test]
fn a_client_with_a_cursor_gets_everything_once_in_order_whatever_happens() {
    let worlds = explore(0..3000, true);
    // The storm must be one: each of these has to come up, or the test says nothing about it.
    let total = |of: fn(&World) -> u64| worlds.iter().map(of).sum::<u64>();
    for (what, count) in [
        ("live", total(|world| world.client.live)),
        ("behind", total(|world| world.client.behind)),
        ("pages", total(|world| world.client.pages)),
        ("refused syncs", total(|world| world.client.refused)),
        ("dropped pages", total(|world| world.counts.get(super::Counter::PageDropped))),
        ("held", total(|world| world.counts.get(super::Counter::DeliverHeld))),
        ("repeated", total(|world| world.counts.get(super::Counter::DeliverRepeated))),
        ("stale items", total(|world| world.counts.get(super::Counter::StaleItem))),
        ("announcements", total(|world| world.announced)),
        ("closes", total(|world| world.client.closes)),
        ("shed room frames", total(|world| world.shed)),
        ("words owed", total(|world| world.owed)),
    ] {
        assert!(count > 100, "{what} came up {count} times");
    }
}

#[test]
fn a_client_without_a_cursor_gets_everything_in_order_or_a_close() {
    let worlds = explore(0..3000, false);
    assert!(worlds.iter().filter(|world| world.client.closes > 0).count() > 300);
    assert!(worlds.iter().filter(|world| world.client.closes == 0).count() > 30);
}

/// All orders of a few events, beginning with a client that is online and a queue that takes two messages.
#[test]
fn every_short_interleaving_is_sound() {
    const STEPS: &[Step] = &[
        Step::Append,
        Step::ControlTakes,
        Step::PageIsRead,
        Step::PageArrives,
        Step::ItemArrives,
        Step::ShardTakes,
        Step::SocketTakes,
        Step::ClientSyncs,
        Step::LinkBreaks,
        Step::LinkMends,
        Step::WalkGoes,
        Step::InboxOverflows,
    ];
    const DEPTH: usize = 7;
    let mut path: Vec<Step> = Vec::with_capacity(DEPTH);
    let mut runs = 0;
    for appended in [0, 3] {
        walk(&mut path, DEPTH, STEPS, appended, &mut runs);
    }
    assert!(runs > 10_000, "{runs} interleavings");
}

/// Replays `path` and, where each further step does something, goes on with it.
fn walk(path: &mut Vec<Step>, depth: usize, steps: &[Step], appended: u32, runs: &mut u64) {
    for &step in steps {
        let mut world = World::online(appended);
        for &earlier in path.iter() {
            world.step(earlier);
        }
        if !world.is_possible(step) {
            continue;
        }
        path.push(step);
        if path.len() < depth {
            walk(path, depth, steps, appended, runs);
        } else {
            *runs += 1;
            let full: &[Step] = path;
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                world.step(step);
                world.settle();
            }));
            assert!(outcome.is_ok(), "after {appended} messages: {full:?}");
        }
        path.pop();
    }
}
