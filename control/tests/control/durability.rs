//! What is on disk: synced before it is answered, there after a restart, never misread.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gimbal_codec::Seq;
use gimbal_control::command::{Command, Reply, ReplyTo};
use gimbal_control::error::RequestError;
use gimbal_control::log::{CommandLog, CommitError, EmbeddedLog, Record};
use gimbal_control::partition::Partition;
use gimbal_control::store::key::Meta;
use gimbal_control::store::memory::MemoryStore;
use gimbal_control::store::rocks::{OpenError, RocksStore, SCHEMA};
use gimbal_control::store::value::{MetaNumber, Value as _};
use gimbal_control::store::{Store, StoreError, Table};
use gimbal_control::writer::Job;
use tokio::sync::oneshot;

use crate::support::{Account, Node, dump, open, push, send, small_rocks};

/// A node, two accounts, and ten messages from the first to the second.
fn ten_messages(path: &Path) -> (Node, Account, Account) {
    let mut node = Node::rocks(path);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    for id in 1..=10 {
        node.send(alice, id, bob.user, &format!("message {id} {}", "x".repeat(200))).unwrap();
    }
    (node, alice, bob)
}

fn newest_log(path: &Path) -> PathBuf {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    logs.sort();
    logs.pop().expect("there is a write-ahead log")
}

/// What the process would leave behind if it were killed now: the files as they are, without a clean close.
fn killed(path: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[test]
fn every_commit_is_one_sync_of_the_log_and_what_changes_nothing_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::rocks(dir.path());
    assert_eq!(node.store.wal_syncs(), 0);
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    for id in 1..=20 {
        node.send(alice, id, bob.user, "x").unwrap();
    }
    node.turn((21..=120).map(|id| send(alice, id, bob.user, "x")).collect());
    assert_eq!(node.counters.commits.get(), 23, "two accounts, twenty sends, one batch of a hundred");
    assert_eq!(node.store.wal_syncs(), 23);
    node.send(alice, 120, bob.user, "x").unwrap();
    node.ask(Command::Stats).unwrap();
    assert_eq!((node.counters.commits.get(), node.store.wal_syncs()), (23, 23));
}

type Answer = oneshot::Receiver<Result<Reply, RequestError>>;

/// Looks at the waiting calls while the commit is under way.
struct Watching {
    inner: EmbeddedLog,
    waits: Arc<Mutex<Vec<Answer>>>,
    early: Arc<Mutex<usize>>,
}

impl CommandLog for Watching {
    fn commit(&mut self, records: Vec<(Partition, Record)>) -> Result<(), CommitError> {
        self.inner.commit(records)?;
        let answered =
            self.waits.lock().unwrap().iter_mut().map(|wait| wait.try_recv()).filter(Result::is_ok).count();
        *self.early.lock().unwrap() += answered;
        Ok(())
    }
}

#[test]
fn no_answer_leaves_before_its_commit_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(open(dir.path()));
    let (waits, early) = (Arc::new(Mutex::default()), Arc::new(Mutex::new(0)));
    let inner = EmbeddedLog::new(Arc::clone(&store));
    let log = Watching { inner, waits: Arc::clone(&waits), early: Arc::clone(&early) };
    let mut node = Node::with_log(store, Box::new(log));
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    for round in 0..20 {
        let mut jobs = Vec::new();
        for id in 1..=10 {
            let (answer, wait) = oneshot::channel();
            waits.lock().unwrap().push(wait);
            jobs.push(Job {
                command: send(alice, round * 10 + id, bob.user, "x"),
                reply_to: ReplyTo::Call(answer),
            });
        }
        let syncs = node.store.wal_syncs();
        node.run(&mut jobs);
        assert_eq!(node.store.wal_syncs(), syncs + 1);
        let waits: Vec<_> = std::mem::take(&mut *waits.lock().unwrap());
        assert!(waits.into_iter().all(|mut wait| matches!(wait.try_recv(), Ok(Ok(_)))));
    }
    assert_eq!(*early.lock().unwrap(), 0);
}

#[test]
fn a_restart_keeps_everything_and_begins_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (node, alice, bob) = ten_messages(dir.path());
    let (before, epoch) = (dump(&*node.store), node.store.control_epoch());
    drop(node);
    let mut node = Node::rocks(dir.path());
    let after = dump(&*node.store);
    let data = |all: &[(Table, Vec<u8>, Vec<u8>)]| -> Vec<_> {
        all.iter().filter(|entry| entry.1[..] != Meta::ControlEpoch.key()).cloned().collect()
    };
    assert_eq!(data(&before), data(&after));
    assert_eq!(node.store.control_epoch(), epoch + 1);
    assert!(node.send(alice, 10, bob.user, &format!("message 10 {}", "x".repeat(200))).unwrap().duplicate);
    assert_eq!(node.send(alice, 11, bob.user, "x").unwrap().seq, Seq::new(11));
    let third = node.account(None, "c");
    assert!(third.user > bob.user && third.device > bob.device, "ids are never given twice");
}

#[test]
fn a_killed_process_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (node, alice, bob) = ten_messages(dir.path());
    let copy = killed(dir.path());
    let mut again = Node::rocks(copy.path());
    assert_eq!(again.messages(bob.user, 0), node.messages(bob.user, 0));
    assert_eq!(again.send(alice, 11, bob.user, "x").unwrap().seq, Seq::new(11));
}

#[test]
fn a_torn_end_of_the_log_is_dropped_and_the_send_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, alice, bob) = ten_messages(dir.path());
    let before = fs::metadata(newest_log(dir.path())).unwrap().len();
    node.send(alice, 11, bob.user, "the last").unwrap();
    let whole = fs::metadata(newest_log(dir.path())).unwrap().len();
    for cut in [before + 1, before + 5, before + 7, before + 30, whole - 1] {
        let copy = killed(dir.path());
        let log = fs::OpenOptions::new().write(true).open(newest_log(copy.path())).unwrap();
        log.set_len(cut).unwrap();
        drop(log);
        let mut again = Node::rocks(copy.path());
        assert_eq!(again.messages(bob.user, 0).1, 10, "cut at {cut} of {whole}");
        let repeated = again.send(alice, 11, bob.user, "the last").unwrap();
        assert_eq!((repeated.seq, repeated.duplicate), (Seq::new(11), false));
    }
}

/// The log of ten messages and an eleventh, after a kill: where the eleventh begins, and its end.
fn with_a_last_one(length: usize) -> (tempfile::TempDir, Account, Account, usize, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, alice, bob) = ten_messages(dir.path());
    let start = fs::metadata(newest_log(dir.path())).unwrap().len() as usize;
    node.send(alice, 11, bob.user, &"y".repeat(length)).unwrap();
    let end = fs::metadata(newest_log(dir.path())).unwrap().len() as usize;
    (killed(dir.path()), alice, bob, start, end)
}

fn hurt(path: &Path, at: usize, bytes: &[u8]) {
    let mut log = fs::OpenOptions::new().write(true).open(newest_log(path)).unwrap();
    log.seek(SeekFrom::Start(at as u64)).unwrap();
    log.write_all(bytes).unwrap();
}

#[test]
fn a_last_write_of_which_some_pages_are_missing_is_set_aside_and_all_before_it_is_there() {
    for length in [200, 9_000, 50_000] {
        let (dir, alice, bob, start, end) = with_a_last_one(length);
        hurt(dir.path(), end.saturating_sub(4096).max(start), &vec![0; (end - start).min(4096)]);
        let torn = fs::read(newest_log(dir.path())).unwrap()[start..].to_vec();
        let mut node = Node::rocks(dir.path());
        assert_eq!(node.messages(bob.user, 0).1, 10, "{length}");
        assert_eq!(node.send(alice, 11, bob.user, "again").unwrap().seq, Seq::new(11));
        let is_torn = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("torn-");
        let kept: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).filter(is_torn).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read(kept[0].path()).unwrap(), torn, "it is kept for whoever wants to look");
    }
}

#[test]
fn zeros_or_a_wrong_length_between_writes_refuse_to_open_and_change_nothing() {
    // In the last block, where the engine takes a wrong length for the end of the log.
    for bytes in [&[0; 300][..], &[0xff, 0xff][..]] {
        let (dir, _, _, start, _) = with_a_last_one(200);
        let at = if bytes.len() == 2 { start + 4 } else { start };
        let mut log = fs::read(newest_log(dir.path())).unwrap();
        let last = log[start..].to_vec();
        log.extend(&last);
        fs::write(newest_log(dir.path()), &log).unwrap();
        hurt(dir.path(), at, &bytes[..bytes.len().min(last.len())]);
        let before = fs::read(newest_log(dir.path())).unwrap();
        let error = RocksStore::open(dir.path(), small_rocks()).err().expect("it refuses");
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&format!("at byte {start}")), "{error}");
        assert_eq!(fs::read(newest_log(dir.path())).unwrap(), before);
    }
}

#[test]
fn damage_before_the_end_of_the_log_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, ..) = ten_messages(dir.path());
    let copy = killed(dir.path());
    let path = newest_log(copy.path());
    let middle = fs::metadata(&path).unwrap().len() / 2;
    let mut log = fs::OpenOptions::new().write(true).open(&path).unwrap();
    log.seek(SeekFrom::Start(middle)).unwrap();
    log.write_all(&[0xa5; 16]).unwrap();
    drop(log);
    let error = RocksStore::open(copy.path(), small_rocks()).err().expect("it refuses");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn a_directory_in_use_is_refused_and_free_again_after_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = RocksStore::open(dir.path(), small_rocks()).err().expect("it refuses");
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("another gimbal process"));
    drop(store);
    open(dir.path());
}

#[test]
fn a_newer_schema_or_an_unknown_table_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut record = Record::default();
    record.put(Table::Meta, &Meta::Schema.key(), &MetaNumber { value: SCHEMA + 1 }.to_bytes());
    store.apply(&[(Partition::META, record)]).unwrap();
    drop(store);
    let error = RocksStore::open(dir.path(), small_rocks()).err().expect("it refuses");
    assert!(matches!(error, OpenError::NewerSchema { found, .. } if found == SCHEMA + 1), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    drop(rocksdb::DB::open_cf(&options, dir.path(), ["somebody_elses"]).unwrap());
    let error = RocksStore::open(dir.path(), small_rocks()).err().expect("it refuses");
    assert!(matches!(&error, OpenError::UnknownTable { table, .. } if table == "somebody_elses"), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_is_refused_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = RocksStore::open(&file, small_rocks()).err().expect("it refuses");
    assert!(error.to_string().contains("cannot open the data directory"), "{error}");
    // procfs refuses new directories also to root.
    let error = RocksStore::open(Path::new("/proc/gimbal"), small_rocks()).err().expect("it refuses");
    assert!(error.to_string().starts_with("/proc/gimbal: cannot"), "{error}");
}

#[test]
fn a_directory_can_be_inspected_beside_the_process_that_has_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _, bob) = ten_messages(dir.path());
    let seen = RocksStore::inspect(dir.path()).unwrap();
    assert_eq!(dump(&seen), dump(&*node.store));
    assert_eq!(seen.control_epoch(), node.store.control_epoch());
    assert!(seen.apply(&[(Partition::META, one_record())]).is_err());
    let mut lines = Vec::new();
    let mut show = |line| {
        lines.push(line);
        gimbal_control::store::Scan::Continue
    };
    for table in Table::ALL {
        gimbal_control::store::inspect::describe_all(&*node.store.snapshot(), table, &mut show).unwrap();
    }
    assert!(lines.iter().all(|line| !line.contains("not understood")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains(&format!("user {} seq 10 = message", bob.user))));
}

fn one_record() -> Record {
    let mut record = Record::default();
    record.put(Table::Meta, &Meta::NextUser.key(), &MetaNumber { value: 1 }.to_bytes());
    record
}

/// Fails from the given commit on.
struct Failing {
    inner: EmbeddedLog,
    good: u32,
}

impl CommandLog for Failing {
    fn commit(&mut self, records: Vec<(Partition, Record)>) -> Result<(), CommitError> {
        if self.good == 0 {
            return Err(CommitError(StoreError::Engine("no space".into())));
        }
        self.good -= 1;
        self.inner.commit(records)
    }
}

#[test]
fn after_a_failed_commit_everything_is_refused_and_nothing_is_answered_from_memory() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let log = Failing { inner: EmbeddedLog::new(Arc::clone(&store)), good: 3 };
    let mut node = Node::with_log(Arc::clone(&store), Box::new(log));
    let (alice, bob) = (node.account(None, "a"), node.account(None, "b"));
    let (lane, gateway) = node.gateway(1);
    node.attach(lane, 1, bob);
    gateway.take();
    node.send(alice, 1, bob.user, "x").unwrap();
    gateway.take();
    let before = dump(&*store);
    assert_eq!(node.send(alice, 2, bob.user, "y"), Err(RequestError::Unavailable));
    assert_eq!(node.send(alice, 1, bob.user, "x"), Err(RequestError::Unavailable), "not even a repeat");
    assert_eq!(node.ask(push(&[bob.user], "x", "")), Err(RequestError::Unavailable));
    assert_eq!(gateway.take(), [], "nothing uncommitted is delivered");
    node.attach(lane, 2, alice);
    let items = gateway.take();
    assert!(matches!(&items[..], [gimbal_rpc::link::Down::SignInRefused { .. }]), "{items:?}");
    assert!(node.ask(Command::Stats).is_ok(), "operators still see");
    assert_eq!(dump(&*store), before);
}

#[test]
fn effects_that_make_no_sense_end_the_store_as_a_failed_write_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(
        store.apply(&[(Partition::META, Record::from_bytes(vec![200]))]),
        Err(StoreError::Corrupt(_))
    ));
    assert!(!store.is_healthy(), "readiness must fail: the writer answers nothing any more");
}

#[test]
fn a_new_data_directory_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/data");
    drop(open(&path));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_store_whose_write_failed_refuses_reads_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _, bob) = ten_messages(dir.path());
    drop(node);
    // A read-only handle is a store whose every write fails.
    let store: Arc<dyn Store> = Arc::new(RocksStore::inspect(dir.path()).unwrap());
    let mut log = EmbeddedLog::new(Arc::clone(&store));
    assert!(store.page(bob.user, Seq::default(), 1, 1).is_ok());
    assert!(log.commit(vec![(Partition::META, one_record())]).is_err());
    assert!(!store.is_healthy());
    assert_eq!(log.commit(Vec::new()), Err(CommitError(StoreError::Poisoned)));
    assert_eq!(store.page(bob.user, Seq::default(), 1, 1), Err(RequestError::Unavailable));
}
