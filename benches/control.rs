//! The executor over memory, and commits of the embedded store with and without what surrounds them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gimbal_benches::{CONTENT_BYTES, Rng};
use gimbal_codec::{ClientMessageId, DeviceId, Seq, UserId, limits};
use gimbal_control::{
    auth::jwt::Jwt,
    command::{Command, DeviceInfo, NewToken, Proof, Registered, Reply, Sender, TokenHash},
    config::{Algorithm, JwtConfig},
    executor::Executor,
    log::{CommandLog as _, EmbeddedLog},
    store::{
        Store,
        memory::MemoryStore,
        rocks::{RocksOptions, RocksStore},
    },
};
use gimbal_rpc::link::Recipient;

const USERS: usize = 1_000;
/// Commands of one batch: what collects while a commit is under way at some ten thousand sends per second.
const BATCH: usize = 64;
const NOW_MS: i64 = 1_700_000_000_000;

/// Users with a device each, and sends between them.
struct World {
    store: Arc<dyn Store>,
    log: EmbeddedLog,
    executor: Executor,
    users: Vec<(UserId, DeviceId, TokenHash)>,
    rng: Rng,
    content: Bytes,
    id: u64,
}

impl World {
    fn new(store: Arc<dyn Store>) -> Self {
        let mut world = Self {
            log: EmbeddedLog::new(Arc::clone(&store)),
            executor: Executor::new(store.control_epoch()),
            store,
            users: Vec::new(),
            content: Rng::new(3).bytes(CONTENT_BYTES),
            rng: Rng::new(4),
            id: 0,
        };
        let registrations: Vec<Command> = (0..USERS).map(|number| register(number as u64)).collect();
        for (number, reply) in (0_u64..).zip(world.run(&registrations)) {
            let Reply::Registered(Registered { user, device, .. }) = reply else { panic!("{reply:?}") };
            world.users.push((user, device, token_of(number)));
        }
        world
    }

    fn batch(&mut self) -> Vec<Command> {
        self.id += 1;
        (0..BATCH).map(|_| self.send()).collect()
    }

    fn send(&mut self) -> Command {
        let mut pick = || self.users[self.rng.below(USERS as u64) as usize];
        let ((user, device, token), (to, ..)) = (pick(), pick());
        self.id += 1;
        Command::Send {
            sender: Sender { user, device, proof: Proof::Token(token) },
            client_message_id: ClientMessageId::new(self.id),
            to: Recipient::User(to),
            command: 1,
            content: self.content.clone(),
        }
    }

    /// Executes and commits; the answers, all of them good.
    fn run(&mut self, commands: &[Command]) -> Vec<Reply> {
        let outcome = self.executor.execute(&*self.store, commands, NOW_MS);
        self.log.commit(outcome.records).expect("committed");
        outcome.outputs.into_iter().map(|output| output.result.expect("accepted")).collect()
    }
}

fn token_of(number: u64) -> TokenHash {
    TokenHash::of(&number.to_be_bytes())
}

fn register(number: u64) -> Command {
    let token = NewToken { hash: token_of(number), expires_at_ms: NOW_MS * 2 };
    Command::RegisterDevice { user: None, device: DeviceInfo::default(), token, idempotency: None }
}

fn stores() -> (Arc<dyn Store>, Arc<dyn Store>, tempfile::TempDir) {
    // In the folder of the build, which is on a disk: a file system in memory would sync for nothing.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let rocks = RocksStore::open(folder.path(), RocksOptions::default()).expect("opens");
    (Arc::new(MemoryStore::new()), Arc::new(rocks), folder)
}

/// Time of one execution; its commit, which the next one relies on, is left out.
#[expect(clippy::disallowed_methods, reason = "measured by hand")]
fn executed(world: &mut World) -> Duration {
    let commands = world.batch();
    let start = Instant::now();
    let outcome = world.executor.execute(&*world.store, &commands, NOW_MS);
    let took = start.elapsed();
    assert!(outcome.outputs.iter().all(|output| output.result.is_ok()));
    world.log.commit(outcome.records).expect("committed");
    took
}

fn executor(c: &mut Criterion) {
    let (memory, rocks, _folder) = stores();
    let mut group = c.benchmark_group("control/execute_sends");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, store) in [("over_memory", memory), ("over_rocks", rocks)] {
        let mut world = World::new(store);
        group.bench_function(name, |b| b.iter_custom(|runs| (0..runs).map(|_| executed(&mut world)).sum()));
    }
    group.finish();
}

fn commits(c: &mut Criterion) {
    let (_, rocks, _folder) = stores();
    let mut world = World::new(rocks);
    let mut group = c.benchmark_group("control/commit_sends_synced");
    for size in [1, BATCH] {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("batch_of_{size}"), |b| {
            let before = world.store.wal_syncs();
            let mut runs = 0;
            b.iter(|| {
                let commands: Vec<Command> = (0..size).map(|_| world.send()).collect();
                assert_eq!(world.run(&commands).len(), size);
                runs += 1;
            });
            assert!(world.store.wal_syncs() - before >= runs, "a commit without its sync");
        });
    }
    group.finish();
}

fn pages(c: &mut Criterion) {
    let (_, rocks, _folder) = stores();
    let mut world = World::new(rocks);
    let (to, count) = (world.users[0].0, u64::from(limits::SYNC_LIMIT_DEFAULT));
    for _ in 0..100 {
        let mut commands = world.batch();
        for command in &mut commands {
            let Command::Send { to: target, .. } = command else { unreachable!("a batch of sends") };
            *target = Recipient::User(to);
        }
        world.run(&commands);
    }
    let mut group = c.benchmark_group("control/read_page");
    group.throughput(Throughput::Elements(count));
    let mut rng = Rng::new(5);
    group.bench_function("of_50", |b| {
        b.iter(|| {
            let after = Seq::new(rng.below(6_000));
            let page = world.store.page(to, after, 0, limits::SYNC_PAGE_BYTES_MAX).expect("reads");
            assert_eq!((page.entries.len() as u64, page.entries[0].0), (count, after.next()));
        });
    });
    group.finish();
}

/// Tokens by each algorithm, as another implementation made them.
fn tokens(c: &mut Criterion) {
    let jwks_file = concat!(env!("CARGO_MANIFEST_DIR"), "/../control/src/auth/vectors/jwks.json");
    let config = JwtConfig {
        algorithms: vec![Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa],
        jwks_file: Some(jwks_file.into()),
        audience: Some("gimbal".into()),
        ..JwtConfig::default()
    };
    let jwt = Jwt::open(&config).expect("the keys are good");
    let mut group = c.benchmark_group("control/check_token");
    group.throughput(Throughput::Elements(1));
    for line in include_str!("../control/src/auth/vectors/tokens.txt").lines() {
        let (name, token) = line.split_once(' ').expect("a name and a token");
        group.bench_function(name, |b| {
            b.iter(|| assert!(jwt.check(token.as_bytes(), NOW_MS + 1000).is_ok()));
        });
    }
    group.finish();
}

criterion_group!(benches, executor, commits, pages, tokens);
criterion_main!(benches);
