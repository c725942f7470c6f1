//! A started server and the client's side of it: what to write for the same wish to each.

use anyhow::{Context as _, Result, ensure};
use gimbal::{
    grpc::{Api, Credential},
    load::{
        fleet::{self, Member},
        progress,
    },
};
use gimbal_codec::UserId;
use tokio::runtime::Runtime;

use crate::{
    conns::Conns,
    dialect::{ItemFn, gimbal as own, mqtt, nats, resp},
    server::{Machine, Peer, Server},
};

/// What a server that was started with `--dev` accepts from backends.
const DEV_KEY: &str = "dev";
/// Subject, topic or channel of the fan-out.
pub(crate) const ROOM: &str = "room";

/// gRPC and credentials, which only gimbal has.
pub(crate) struct Accounts {
    pub(crate) runtime: Runtime,
    pub(crate) api: Api,
    /// One for each connection, by its index.
    members: Vec<Member>,
}

/// A server and the connections to it.
pub(crate) struct Side {
    pub(crate) peer: Peer,
    pub(crate) conns: Conns,
    accounts: Option<Accounts>,
    pub(crate) server: Server,
}

impl Side {
    /// Starts `peer` and registers `accounts` devices where it knows such; nothing is connected yet.
    ///
    /// # Errors
    /// When the server does not start or refuses a registration.
    pub(crate) fn start(machine: &Machine, peer: Peer, durable: bool, accounts: usize) -> Result<Self> {
        let server = machine.start(peer, durable)?;
        let accounts = match server.grpc {
            None => None,
            Some(grpc) => {
                let runtime = fleet::runtime()?;
                let api = runtime.block_on(Api::connect(&grpc.to_string()))?;
                let bar = progress(accounts as u64, "register");
                let members = runtime.block_on(fleet::register(&api, DEV_KEY, accounts, &bar))?;
                bar.finish_and_clear();
                Some(Accounts { runtime, api, members })
            }
        };
        Ok(Self { peer, conns: Conns::new(item(peer))?, accounts, server })
    }

    /// The side of a bare bound that runs already.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub(crate) fn of_bare(server: Server) -> Result<Self> {
        Ok(Self { peer: Peer::Bare, conns: Conns::new(item(Peer::Bare))?, accounts: None, server })
    }

    /// Opens `count` more connections and brings each to where it may subscribe and publish.
    ///
    /// # Errors
    /// When one fails or is refused.
    pub(crate) fn open(&mut self, count: usize) -> Result<()> {
        let (peer, accounts, address) = (self.peer, &self.accounts, self.server.address);
        let members = accounts.as_ref().map_or(&[][..], |accounts| &accounts.members);
        let is_known = peer != Peer::Gimbal || members.len() >= self.conns.len() + count;
        ensure!(is_known, "more connections than accounts");
        let opened = self.conns.open(address, count, &mut |index, out| {
            match peer {
                Peer::Bare => return 0,
                Peer::Gimbal => own::hello(&members[index], out),
                Peer::Nats => nats::hello(out),
                Peer::Mosquitto => mqtt::hello(index, out),
                Peer::Redis => resp::ping(out),
            }
            1
        });
        opened.with_context(|| format!("the server last said:\n{}\nand", self.server.log_tail()))
    }

    /// Closes all connections.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.conns = Conns::new(item(self.peer))?;
        Ok(())
    }

    /// Makes all connections members of the one room.
    ///
    /// # Errors
    /// When a subscription is refused or not answered.
    pub(crate) fn join_room(&mut self) -> Result<()> {
        let peer = self.peer;
        self.conns.ask(&mut |_, out| {
            match peer {
                Peer::Bare => return 0,
                Peer::Gimbal => own::join(out),
                Peer::Nats => nats::subscribe(ROOM, out),
                Peer::Mosquitto => mqtt::subscribe(ROOM, out),
                Peer::Redis => resp::subscribe(ROOM, out),
            }
            1
        })
    }

    /// Lets the connections from `first` on get what is sent to them by their index.
    ///
    /// # Errors
    /// When a subscription is refused or not answered.
    pub(crate) fn listen_from(&mut self, first: usize) -> Result<()> {
        let peer = self.peer;
        self.conns.ask(&mut |index, out| {
            let name = inbox(peer, index);
            match peer {
                _ if index < first => return 0,
                Peer::Bare | Peer::Gimbal => return 0, // a session needs no subscription for its own user
                Peer::Nats => nats::subscribe(&name, out),
                Peer::Mosquitto => mqtt::subscribe(&name, out),
                Peer::Redis => resp::subscribe(&name, out),
            }
            1
        })
    }

    /// The bytes of one message to a connection; not stored.
    ///
    /// # Errors
    /// For a bare bound, which has nothing to say.
    pub(crate) fn message_to(&self, index: usize, payload: &[u8]) -> Result<Vec<u8>> {
        let (mut out, name) = (Vec::new(), inbox(self.peer, index));
        match self.peer {
            Peer::Bare => anyhow::bail!("a bare bound takes no message"),
            Peer::Gimbal => own::signal(self.user(index)?, payload, &mut out),
            Peer::Nats => nats::publish(&name, payload, &mut out),
            Peer::Mosquitto => mqtt::publish(&name, payload, &mut out),
            Peer::Redis => resp::publish(&name, payload, &mut out),
        }
        Ok(out)
    }

    /// The bytes of one message to the room, where that is published over a connection.
    pub(crate) fn message_to_room(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match self.peer {
            Peer::Bare | Peer::Gimbal => return None,
            Peer::Nats => nats::publish(ROOM, payload, &mut out),
            Peer::Mosquitto => mqtt::publish(ROOM, payload, &mut out),
            Peer::Redis => resp::publish(ROOM, payload, &mut out),
        }
        Some(out)
    }

    /// The bytes of a ping; the bare echo is given gimbal's.
    pub(crate) fn ping(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.peer {
            Peer::Bare | Peer::Gimbal => own::ping(&mut out),
            Peer::Nats => nats::ping(&mut out),
            Peer::Mosquitto => mqtt::ping(&mut out),
            Peer::Redis => resp::ping(&mut out),
        }
        out
    }

    /// The user behind a registered account.
    ///
    /// # Errors
    /// When there are no accounts, or not so many.
    pub(crate) fn user(&self, index: usize) -> Result<UserId> {
        let member = self.accounts.as_ref().and_then(|accounts| accounts.members.get(index));
        Ok(member.context("no such account")?.user)
    }

    /// The publishing end of gimbal's rooms.
    ///
    /// # Errors
    /// When there are no accounts.
    pub(crate) fn accounts(&self) -> Result<(&Accounts, Credential)> {
        Ok((self.accounts.as_ref().context("a server without accounts")?, Credential::bearer(DEV_KEY)?))
    }
}

fn item(peer: Peer) -> ItemFn {
    match peer {
        Peer::Bare | Peer::Gimbal => own::item,
        Peer::Nats => nats::item,
        Peer::Mosquitto => mqtt::item,
        Peer::Redis => resp::item,
    }
}

/// Where a connection is written to; separators as each protocol has them.
fn inbox(peer: Peer, index: usize) -> String {
    match peer {
        Peer::Nats => format!("p.{index}"),
        Peer::Mosquitto => format!("p/{index}"),
        _ => format!("p{index}"),
    }
}
