//! `gimbal client`: a client for people.

mod device;
mod listen;

use std::{fmt, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use gimbal::{
    client::{Client, ClientError, Events, Message},
    clock::time_of_day,
    grpc::{Credential, explain},
    inspect::printable,
};
use gimbal_codec::{ClientMessageId, GroupId, RoomId, Seq, UserId, body::SendResult, limits::SYNC_LIMIT_MAX};
use gimbal_rpc::v1::{CountRequest, PublishRequest};

use super::{GrpcArgs, KeyArgs, small_runtime};
use device::{Device, DeviceArgs};

/// How often an unanswered send is repeated over a new connection, with the same client message id.
const SEND_TRIES: usize = 5;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// Sign in by phone, print messages as they come, and go on at the cursor where the last start ended.
    Listen {
        #[command(flatten)]
        device: DeviceArgs,
        /// End after so many messages
        #[arg(long)]
        count: Option<u64>,
    },
    /// Send messages to a user, or to a group, and wait until they are durable.
    Send {
        #[command(flatten)]
        device: DeviceArgs,
        /// User id of the recipient, as `listen` prints it
        #[arg(long, required_unless_present = "group")]
        to: Option<u64>,
        /// Id of a group in place of a recipient
        #[arg(long, conflicts_with = "to")]
        group: Option<u64>,
        /// Opaque type code
        #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
        command: i32,
        /// Send with this client message id instead of the next one: a repeated one is the same message
        #[arg(long)]
        client_message_id: Option<u64>,
        /// One message each
        #[arg(required = true)]
        texts: Vec<String>,
    },
    /// Print the mailbox.
    Sync {
        #[command(flatten)]
        device: DeviceArgs,
        /// From after this seq
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Most messages printed
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
    /// Rooms.
    #[command(subcommand)]
    Room(RoomVerb),
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum RoomVerb {
    /// Join rooms and print what is published there.
    Join {
        #[command(flatten)]
        device: DeviceArgs,
        /// End after so many messages
        #[arg(long)]
        count: Option<u64>,
        /// Room ids
        #[arg(required = true)]
        rooms: Vec<u64>,
    },
    /// Publish to a room (backend key).
    Publish {
        #[command(flatten)]
        grpc: GrpcArgs,
        #[command(flatten)]
        key: KeyArgs,
        /// Opaque type code
        #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
        command: i32,
        /// Room id
        room: u64,
        /// The content
        text: String,
    },
    /// Members online in rooms (backend key).
    Count {
        #[command(flatten)]
        grpc: GrpcArgs,
        #[command(flatten)]
        key: KeyArgs,
        /// Room ids
        #[arg(required = true)]
        rooms: Vec<u64>,
    },
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    small_runtime()?.block_on(async {
        match verb {
            Verb::Listen { device, count } => listen::listen(device, "listen", &[], count).await,
            Verb::Room(RoomVerb::Join { device, count, rooms }) => {
                let rooms: Vec<RoomId> = rooms.into_iter().map(RoomId::new).collect();
                listen::listen(device, "room", &rooms, count).await
            }
            Verb::Send { device, to, group, command, client_message_id, texts } => {
                let mut device = Device::open(device, "cli").await?;
                let to =
                    group.map_or(To::User(UserId::new(to.unwrap_or(0))), |id| To::Group(GroupId::new(id)));
                for text in texts {
                    send(&mut device, to, command, client_message_id, &text).await?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Verb::Sync { device, after, limit } => sync(device, after, limit).await,
            Verb::Room(RoomVerb::Publish { grpc, key, command, room, text }) => {
                publish(&grpc, &key, command, room, text).await
            }
            Verb::Room(RoomVerb::Count { grpc, key, rooms }) => count(&grpc, &key, rooms).await,
        }
    })
}

/// Answers come only as long as somebody takes the events.
fn ignore(mut events: Events) {
    tokio::spawn(async move { while events.next().await.is_some() {} });
}

/// Whom a message is for.
#[derive(Clone, Copy)]
enum To {
    User(UserId),
    Group(GroupId),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Group(group) => write!(f, "group {group}"),
        }
    }
}

async fn send(device: &mut Device, to: To, command: i32, id: Option<u64>, text: &str) -> Result<()> {
    let id = match id {
        Some(id) => id,
        None => device.reserve_client_message_id()?,
    };
    let mut tries = 0;
    let result = loop {
        tries += 1;
        match try_send(device, to, command, id, text).await {
            Err(ClientError::Closed(_) | ClientError::Timeout(_) | ClientError::Connect { .. })
                if tries < SEND_TRIES =>
            {
                eprintln!("no answer; the same message again");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            Err(error @ ClientError::Refused { .. }) => bail!("message {id} to {to}: {error}"),
            other => {
                break other.with_context(|| format!("message {id} to {to} may be stored or not"))?;
            }
        }
    };
    let again = if result.duplicate { ", stored before" } else { "" };
    gimbal::say!(
        "stored as seq {} (message id {}, client message id {id}{again})",
        result.seq,
        result.message_id
    );
    Ok(())
}

async fn try_send(
    device: &mut Device,
    to: To,
    command: i32,
    id: u64,
    text: &str,
) -> Result<SendResult, ClientError> {
    let client = connected(device).await?;
    let (id, text) = (ClientMessageId::new(id), text.as_bytes());
    let result = match to {
        To::User(user) => client.send(user, id, command, text).await,
        To::Group(group) => client.send_to_group(group, id, command, text).await,
    };
    if matches!(result, Err(ClientError::Closed(_) | ClientError::Timeout(_))) {
        device.client = None;
    }
    result
}

async fn connected(device: &mut Device) -> Result<Client, ClientError> {
    if let Some(client) = &device.client {
        return Ok(client.clone());
    }
    let (client, events, _) = device.connect(Some(Seq::new(0))).await?;
    ignore(events);
    device.client = Some(client.clone());
    Ok(client)
}

async fn sync(args: DeviceArgs, after: u64, limit: u64) -> Result<ExitCode> {
    let mut device = Device::open(args, "cli").await?;
    let client = connected(&mut device).await?;
    let (mut cursor, mut left) = (Seq::new(after), limit);
    loop {
        let wanted = left.min(u64::from(SYNC_LIMIT_MAX)) as u32;
        let page = client.sync(cursor, wanted).await.context("sync")?;
        if page.trimmed_to > cursor {
            gimbal::say!("messages up to seq {} are no longer kept", page.trimmed_to);
        }
        page.messages.iter().for_each(|message| gimbal::say!("{}", line(message)));
        left -= page.messages.len() as u64;
        cursor = page.messages.last().map_or(cursor, |message| message.seq);
        if !page.has_more || page.messages.is_empty() || left == 0 {
            gimbal::say!("latest seq {}", page.latest);
            return Ok(ExitCode::SUCCESS);
        }
    }
}

async fn publish(grpc: &GrpcArgs, key: &KeyArgs, command: i32, room: u64, text: String) -> Result<ExitCode> {
    let mut rooms = grpc.connect().await?.rooms(Credential::bearer(&key.read()?)?);
    let request = PublishRequest { room_id: room, command, content: text.into() };
    let reply = rooms.publish(request).await.map_err(|status| explain("publish", &status))?.into_inner();
    gimbal::say!("published as {}.{} to {} gateways", reply.room_epoch, reply.room_seq, reply.gateways);
    Ok(ExitCode::SUCCESS)
}

async fn count(grpc: &GrpcArgs, key: &KeyArgs, rooms: Vec<u64>) -> Result<ExitCode> {
    let mut api = grpc.connect().await?.rooms(Credential::bearer(&key.read()?)?);
    let reply =
        api.count(CountRequest { room_ids: rooms }).await.map_err(|status| explain("count", &status))?;
    for room in reply.into_inner().rooms {
        gimbal::say!("room {}: {} members", room.room_id, room.members);
    }
    Ok(ExitCode::SUCCESS)
}

/// One message on one line.
fn line(message: &Message) -> String {
    let from = match message.from_user.get() {
        0 => "the backend".to_owned(),
        user => format!("user {user}"),
    };
    let place = match (message.room.get(), message.seq.get()) {
        (0, seq) if !message.group.is_none() => {
            format!("seq {seq}  group {} {}", message.group, message.group_seq)
        }
        (0, 0) => "not stored".to_owned(),
        (0, seq) => format!("seq {seq}"),
        (room, _) => format!("room {room} {}.{}", message.room_order.0, message.room_order.1),
    };
    format!("{}  from {from}  {place}  {}", time_of_day(message.created_at_ms), printable(&message.content))
}
