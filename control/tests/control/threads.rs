//! The writer as a thread.

use std::sync::Arc;

use gimbal_control::command::{Command, DeviceInfo, Registered, Reply, ReplyTo};
use gimbal_control::error::RequestError;
use gimbal_control::log::EmbeddedLog;
use gimbal_control::store::Store;
use gimbal_control::writer::{Job, Limits, Writer};

use crate::support::{Account, START_MS, new_token, open, registered, send};

fn start(store: Arc<dyn Store>) -> Writer {
    let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
    Writer::start(store, log, Limits::default(), Box::new(|| START_MS)).unwrap()
}

fn account(writer: &Writer) -> Account {
    let token = new_token("t", START_MS);
    let command =
        Command::RegisterDevice { user: None, device: DeviceInfo::default(), token, idempotency: None };
    let Registered { user, device, .. } = registered(writer.call_blocking(command));
    Account { user, device, token: token.hash }
}

#[test]
fn many_callers_share_commits_and_each_message_gets_its_own_seq() {
    let dir = tempfile::tempdir().unwrap();
    let writer = start(Arc::new(open(dir.path())));
    let to = account(&writer).user;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let writer = writer.clone();
            let from = account(&writer);
            std::thread::spawn(move || {
                let sent = (1..=50).map(|id| writer.call_blocking(send(from, id, to, "x")));
                sent.map(|reply| match reply {
                    Ok(Reply::Sent(result)) => result.seq.get(),
                    reply => panic!("not {reply:?}"),
                })
                .collect::<Vec<u64>>()
            })
        })
        .collect();
    let mut seqs: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=400).collect::<Vec<u64>>());
    assert_eq!(writer.counters().commits.get(), writer.store().wal_syncs());
    writer.stop();
}

#[test]
fn a_stop_finishes_what_waits_and_refuses_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let writer = start(Arc::new(open(dir.path())));
    let alice = account(&writer);
    let (mut jobs, mut waits) = (Vec::new(), Vec::new());
    for id in 1..=3000 {
        let (answer, wait) = tokio::sync::oneshot::channel();
        jobs.push(Job { command: send(alice, id, alice.user, "x"), reply_to: ReplyTo::Call(answer) });
        waits.push(wait);
    }
    writer.submit_many(&mut jobs).unwrap();
    writer.stop();
    assert!(waits.into_iter().all(|mut wait| matches!(wait.try_recv(), Ok(Ok(_)))));
    assert_eq!(writer.submit(Command::Stats, ReplyTo::Nobody), Err(RequestError::Unavailable));
    writer.stop();
}

#[test]
fn a_command_whose_caller_has_given_up_is_not_executed() {
    let store = Arc::new(gimbal_control::store::memory::MemoryStore::new());
    let mut node = crate::support::Node::over(store);
    let alice = node.account(None, "a");
    let (lane, gateway) = node.gateway(1);
    node.attach(lane, 1, alice);
    gateway.take();
    let (gone, _) = tokio::sync::oneshot::channel();
    let (kept, mut waits) = tokio::sync::oneshot::channel();
    let (late, _) = tokio::sync::oneshot::channel();
    let mut jobs = vec![
        Job { command: send(alice, 1, alice.user, "late"), reply_to: ReplyTo::Call(gone) },
        Job { command: send(alice, 2, alice.user, "in time"), reply_to: ReplyTo::Call(kept) },
        Job { command: Command::Kick { user: alice.user, device: None }, reply_to: ReplyTo::Call(late) },
    ];
    node.run(&mut jobs);
    assert!(matches!(waits.try_recv(), Ok(Ok(_))));
    assert_eq!(node.messages(alice.user, 0).0, [(1, "in time".to_owned())]);
    assert_eq!(node.counters.given_up.get(), 2);
    assert!(gateway.take().iter().all(|item| !matches!(item, gimbal_rpc::link::Down::Kick { .. })));
}
