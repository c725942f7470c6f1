//! Any interleaving of sends, repeats, pushes, acks and idempotent writes against a plain model, on both stores at once.

use std::collections::BTreeMap;

use gimbal_codec::{DeviceId, MessageId, Seq, UserId};
use gimbal_control::command::{Command, DeviceInfo, Pushed, Registered, Reply};
use gimbal_control::error::RequestError;
use gimbal_control::partition::Partition;
use proptest::prelude::*;

use crate::support::{Account, Node, bare, dump, key, new_token, push, send};

/// Enough users that some share a partition.
const USERS: usize = 48;

#[derive(Clone, Debug)]
enum Step {
    Send { from: usize, id: u64, to: usize, text: u8 },
    Push { users: Vec<usize>, text: u8, key: u8 },
    Ack { of: usize, seq: u64 },
    Register { user: Option<usize>, key: u8, model: u8 },
    Revoke { of: usize, key: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let user = 0..USERS + 1;
    let step = prop_oneof![
        8 => (0..6_usize, 1..12_u64, user.clone(), 0..3_u8)
            .prop_map(|(from, id, to, text)| Step::Send { from, id, to, text }),
        2 => (proptest::collection::vec(user, 1..12), 0..3_u8, 0..4_u8)
            .prop_map(|(users, text, key)| Step::Push { users, text, key }),
        2 => (0..6_usize, 0..10_u64).prop_map(|(of, seq)| Step::Ack { of, seq }),
        1 => (proptest::option::of(0..3_usize), 0..4_u8, 0..2_u8)
            .prop_map(|(user, key, model)| Step::Register { user, key, model }),
        1 => (0..6_usize, 0..4_u8).prop_map(|(of, key)| Step::Revoke { of, key }),
    ];
    proptest::collection::vec(proptest::collection::vec(step, 1..20), 1..12)
}

/// Long enough to be shared, or short.
fn text_of(text: u8) -> String {
    if text == 0 { "long ".repeat(60) } else { format!("text {text}") }
}

#[derive(Clone, PartialEq, Debug)]
struct Stored {
    message: MessageId,
    text: String,
}

type SendKey = (Partition, UserId, DeviceId, u64);
type Sent = (UserId, String, Seq, MessageId);

/// What must come of it, in maps.
#[derive(Default)]
struct Model {
    mailboxes: BTreeMap<UserId, Vec<Stored>>,
    sent: BTreeMap<SendKey, Sent>,
    acks: BTreeMap<DeviceId, Seq>,
    live: BTreeMap<DeviceId, (UserId, bool)>,
    keys: BTreeMap<String, (String, Reply)>,
}

impl Model {
    fn check(&mut self, step: &Step, accounts: &[Account], got: &Result<Reply, RequestError>) {
        match step {
            Step::Send { from, id, to, text } => {
                self.sent(accounts[*from], *id, user_at(accounts, *to), &text_of(*text), got);
            }
            Step::Push { users, text, key } => {
                let users: Vec<UserId> = users.iter().map(|at| user_at(accounts, *at)).collect();
                self.once(*key, format!("push {users:?} {text}"), got, |model| {
                    model.pushed(&users, *text, got)
                });
            }
            Step::Ack { of, seq } => self.acked(accounts[*of], Seq::new(*seq), got),
            Step::Register { user, key, model } => {
                let user = user.map(|at| accounts[at].user);
                self.once(*key, format!("register {user:?} {model}"), got, |model| {
                    let Ok(Reply::Registered(Registered { user: made, device, is_new })) = got else {
                        panic!("not {got:?}")
                    };
                    assert_eq!(*is_new, user.is_none());
                    assert!(user.is_none_or(|user| user == *made));
                    assert_eq!(model.live.insert(*device, (*made, true)), None, "a new device");
                    let mailbox = model.mailboxes.entry(*made).or_default();
                    assert!(!is_new || mailbox.is_empty());
                });
            }
            Step::Revoke { of, key } => {
                let device = accounts[*of].device;
                self.once(*key, format!("revoke {device}"), got, |model| {
                    let (_, live) = model.live.get_mut(&device).expect("it is registered");
                    assert_eq!(*got, Ok(Reply::Revoked { revoked: *live }));
                    *live = false;
                });
            }
        }
    }

    /// Key 0 is none.
    fn once(
        &mut self,
        key: u8,
        what: String,
        got: &Result<Reply, RequestError>,
        first: impl FnOnce(&mut Self),
    ) {
        let key = format!("key {key}");
        match self.keys.get(&key).filter(|_| key != "key 0") {
            Some((before, reply)) if *before == what => assert_eq!(got.as_ref(), Ok(reply)),
            Some(_) => assert_eq!(*got, Err(RequestError::Conflict)),
            None => {
                first(self);
                if let Ok(reply) = got {
                    self.keys.insert(key, (what, reply.clone()));
                }
            }
        }
    }

    fn sent(&mut self, from: Account, id: u64, to: UserId, text: &str, got: &Result<Reply, RequestError>) {
        if !self.live[&from.device].1 {
            return assert_eq!(*got, Err(RequestError::NotSignedIn));
        }
        let Some(mailbox) = self.mailboxes.get_mut(&to) else {
            return assert_eq!(*got, Err(RequestError::UserNotFound));
        };
        let at = (Partition::of_user(to), from.user, from.device, id);
        match self.sent.get(&at) {
            Some((to_before, text_before, seq, message)) if (*to_before, &text_before[..]) == (to, text) => {
                let Ok(Reply::Sent(result)) = got else { panic!("a repeat is answered, not {got:?}") };
                assert_eq!((result.seq, result.message_id, result.duplicate), (*seq, *message, true));
            }
            Some(_) => assert_eq!(*got, Err(RequestError::Conflict)),
            None => {
                let Ok(Reply::Sent(result)) = got else { panic!("a send is answered, not {got:?}") };
                mailbox.push(Stored { message: result.message_id, text: text.into() });
                assert_eq!((result.seq.get(), result.duplicate), (mailbox.len() as u64, false));
                self.sent.insert(at, (to, text.into(), result.seq, result.message_id));
            }
        }
    }

    fn pushed(&mut self, users: &[UserId], text: u8, got: &Result<Reply, RequestError>) {
        let Ok(Reply::Pushed(Pushed { message_id, users: verdicts })) = got else { panic!("not {got:?}") };
        assert_eq!(verdicts.iter().map(|(user, _)| *user).collect::<Vec<_>>(), users);
        let mut done = BTreeMap::new();
        for (user, verdict) in verdicts {
            let expected = *done.entry(*user).or_insert_with(|| {
                let mailbox = self.mailboxes.get_mut(user).ok_or(RequestError::UserNotFound)?;
                mailbox.push(Stored { message: *message_id, text: text_of(text) });
                Ok(Seq::new(mailbox.len() as u64))
            });
            assert_eq!(*verdict, expected);
        }
    }

    fn acked(&mut self, of: Account, seq: Seq, got: &Result<Reply, RequestError>) {
        if !self.live[&of.device].1 {
            return assert_eq!(*got, Err(RequestError::NotSignedIn));
        }
        let latest = Seq::new(self.mailboxes[&of.user].len() as u64);
        let ack = self.acks.entry(of.device).or_default();
        *ack = (*ack).max(seq.min(latest));
        assert_eq!(*got, Ok(Reply::Acked(*ack)));
    }

    fn check_mailboxes(&self, node: &Node) {
        for (user, expected) in &self.mailboxes {
            let mut from = Seq::default();
            for chunk in expected.chunks(5) {
                let page = node.store.page(*user, from, 5, 1 << 20).unwrap();
                assert_eq!(page.latest.get(), expected.len() as u64);
                assert_eq!(page.entries.len(), chunk.len());
                for ((seq, body), stored) in page.entries.iter().zip(chunk) {
                    assert_eq!(*seq, from.next(), "no gap");
                    assert_eq!(
                        (body.message_id, &body.content[..]),
                        (stored.message, stored.text.as_bytes())
                    );
                    from = *seq;
                }
            }
        }
    }
}

/// One past the end is nobody.
fn user_at(accounts: &[Account], at: usize) -> UserId {
    accounts.get(at).map_or(UserId::new(77), |account| account.user)
}

fn command_of(step: &Step, accounts: &[Account], now_ms: i64) -> Command {
    let key_text = |key: u8| if key == 0 { String::new() } else { format!("key {key}") };
    match step {
        Step::Send { from, id, to, text } => {
            send(accounts[*from], *id, user_at(accounts, *to), &text_of(*text))
        }
        Step::Push { users, text, key } => {
            let users: Vec<UserId> = users.iter().map(|at| user_at(accounts, *at)).collect();
            push(&users, &text_of(*text), &key_text(*key))
        }
        Step::Ack { of, seq } => Command::Ack { sender: bare(accounts[*of]), seq: Seq::new(*seq) },
        Step::Register { user, key: key_number, model } => Command::RegisterDevice {
            user: user.map(|at| accounts[at].user),
            device: DeviceInfo { model: format!("model {model}"), ..DeviceInfo::default() },
            token: new_token("t", now_ms),
            idempotency: key(&key_text(*key_number)),
        },
        Step::Revoke { of, key: key_number } => Command::RevokeToken {
            user: accounts[*of].user,
            device: accounts[*of].device,
            idempotency: key(&key_text(*key_number)),
        },
    }
}

fn prepare(node: &mut Node, model: &mut Model) -> Vec<Account> {
    let accounts: Vec<Account> = (0..USERS).map(|_| node.account(None, "t")).collect();
    for account in &accounts {
        model.mailboxes.insert(account.user, Vec::new());
        model.live.insert(account.device, (account.user, true));
    }
    accounts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_interleaving_agrees_with_the_model_on_both_stores(batches in steps(), reopen_at in 0..12_usize) {
        let dir = tempfile::tempdir().unwrap();
        let (mut model, mut other_model) = (Model::default(), Model::default());
        let mut memory = Node::memory();
        let mut rocks = Node::rocks(dir.path());
        let accounts = prepare(&mut memory, &mut model);
        let same: Vec<DeviceId> = prepare(&mut rocks, &mut other_model).iter().map(|account| account.device).collect();
        assert_eq!(accounts.iter().map(|account| account.device).collect::<Vec<_>>(), same);
        for (at, batch) in batches.iter().enumerate() {
            let commands = |node: &Node| batch.iter().map(|step| command_of(step, &accounts, node.now_ms)).collect();
            let replies = memory.turn(commands(&memory));
            prop_assert_eq!(&replies, &rocks.turn(commands(&rocks)));
            for (step, got) in batch.iter().zip(&replies) {
                model.check(step, &accounts, got);
            }
            if at == reopen_at {
                drop(rocks);
                rocks = Node::rocks(dir.path());
                let again = std::sync::Arc::clone(&memory.store);
                let copy = gimbal_control::store::memory::MemoryStore::from_dump(dump(&*again), 2);
                memory = Node::over(std::sync::Arc::new(copy));
            }
        }
        model.check_mailboxes(&memory);
        model.check_mailboxes(&rocks);
        let data = |node: &Node| -> Vec<_> {
            dump(&*node.store).into_iter().filter(|entry| entry.0 != gimbal_control::store::Table::Meta || entry.1[2] > 2).collect()
        };
        prop_assert_eq!(data(&memory), data(&rocks));
    }
}
