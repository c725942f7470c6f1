//! Lines that the hot paths hold in allocations and instructions, which no busy machine can blur.
//!
//! Allocations are counted here. Instructions are counted by valgrind, which runs this program twice with different
//! numbers of repetitions: the difference is the work alone. Lines are some 25 % above what was counted when they were
//! drawn (x86-64); what crosses one is to be understood before the line is moved.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::{env, process::Command, sync::Arc};

use gimbal_benches::parts::{
    MEMBERS, SENDS, decode_sends, deliver_live, heartbeat, send_to_link, to_members,
};
use gimbal_codec::{DeviceId, GatewayId, Seq, SessionKey, ShardId, UserId};
use gimbal_control::{
    command::Lane,
    route::{Arrival, Routes, policy::Policy},
    trace::Trace,
};
use gimbal_rpc::link::{Body, Down, Downlink, Hello, LinkFull};

/// `name repetitions`: what the child under valgrind does.
const CHILD: &str = "GIMBAL_COUNT";
/// Repetitions of the child that does less; the other does twice as many.
const FEW: u64 = 40;

/// One hot path: its name, how many things one step does, and at most how many allocations and instructions each.
struct Line {
    name: &'static str,
    things: u64,
    allocations: f64,
    instructions: u64,
}

const LINES: [Line; 8] = [
    Line { name: "heartbeat", things: 1, allocations: 2.0, instructions: 1_450 },
    Line { name: "send_to_link", things: 1, allocations: 3.0, instructions: 2_000 },
    Line { name: "deliver_live", things: 1, allocations: 2.0, instructions: 2_200 },
    Line { name: "one_frame_to_members", things: MEMBERS as u64, allocations: 0.01, instructions: 310 },
    Line { name: "burst_to_members", things: 16 * MEMBERS as u64, allocations: 0.01, instructions: 20 },
    Line { name: "decode_sends", things: SENDS, allocations: 0.0, instructions: 950 },
    Line { name: "release", things: RELEASED, allocations: 1.0, instructions: 800 },
    Line { name: "release_traced", things: RELEASED, allocations: 1.0, instructions: 870 },
];

fn step(name: &str) -> Box<dyn FnMut()> {
    match name {
        "heartbeat" => Box::new(heartbeat()),
        "send_to_link" => Box::new(send_to_link()),
        "deliver_live" => Box::new(deliver_live()),
        "one_frame_to_members" => Box::new(to_members(1)),
        "burst_to_members" => Box::new(to_members(16)),
        "decode_sends" => Box::new(decode_sends()),
        "release" => Box::new(release(Trace::new(0))),
        "release_traced" => Box::new(release(Trace::new(Trace::KEPT))),
        other => panic!("no step is called {other}"),
    }
}

/// Messages that one step releases, each to one session.
const RELEASED: u64 = 256;

/// A gateway that lets everything fall.
struct Nowhere;

impl Downlink for Nowhere {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        items.clear();
        Ok(())
    }
}

/// Control hands messages between two users to their gateway, and notes what became of each in `trace`.
fn release(trace: Trace) -> impl FnMut() {
    let mut routes = Routes::new(1, Policy::all());
    let hello = Hello { gateway: GatewayId::new(1), epoch: 1, shards: 1 };
    routes.gateway_up(Lane(1), hello, Arc::new(Nowhere));
    for number in 0..RELEASED {
        let arrival = Arrival {
            lane: Lane(1),
            session: SessionKey::new(ShardId(0), number as u32, 1),
            user: UserId::new(number),
            device: DeviceId::new(number),
            peer: "",
            issued_at_ms: 0,
            kind: 0,
        };
        routes.attach(&arrival, 1).expect("it is linked").expect("all may come");
    }
    let bodies: Vec<Arc<Body>> = (0..RELEASED).map(|_| Arc::default()).collect();
    move || {
        for (body, user) in bodies.iter().zip(0..) {
            let count = routes.deliver(body, &[(UserId::new(user), Seq::new(1))], trace.pen(), 1);
            assert_eq!(count, 1);
        }
        assert_eq!(routes.flush(|_| {}), 0);
    }
}

#[test]
fn hot_paths_allocate_no_more_than_their_lines_allow() {
    const STEPS: u64 = 100;
    for line in &LINES {
        let mut step = step(line.name);
        (0..STEPS).for_each(|_| step());
        let counted = allocation_counter::measure(|| (0..STEPS).for_each(|_| step()));
        let each = counted.count_total as f64 / (STEPS * line.things) as f64;
        println!("{}: {each:.4} allocations", line.name);
        assert!(each <= line.allocations, "{}: {each} allocations, {} allowed", line.name, line.allocations);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn hot_paths_take_no_more_instructions_than_their_lines_allow() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("NOT CHECKED: valgrind is not installed");
        return;
    }
    let mut crossed = Vec::new();
    for line in &LINES {
        let few = instructions(line.name, FEW);
        let each = (instructions(line.name, 2 * FEW) - few) / (FEW * line.things);
        println!("{}: {each} instructions", line.name);
        if each > line.instructions {
            crossed.push(format!("{}: {each} instructions, {} allowed", line.name, line.instructions));
        }
    }
    assert!(crossed.is_empty(), "{crossed:#?}");
}

/// Repeats the step that the parent named; on its own it has nothing to do.
#[test]
fn child_of_the_instruction_count() {
    let Ok(work) = env::var(CHILD) else { return };
    let (name, repetitions) = work.split_once(' ').unwrap();
    let mut step = step(name);
    (0..repetitions.parse::<u64>().unwrap()).for_each(|_| step());
}

fn instructions(name: &str, repetitions: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "child_of_the_instruction_count"])
        .env(CHILD, format!("{name} {repetitions}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let line = text
        .lines()
        .find(|line| line.contains("I   refs") || line.contains("I refs"))
        .unwrap_or_else(|| panic!("{text}"));
    let digits: String = line.rsplit(':').next().unwrap().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
