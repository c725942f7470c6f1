//! `gimbal admin`: the operator's calls.

mod trace;

use std::process::ExitCode;

use anyhow::{Result, bail};
use gimbal::{
    clock::time_of_day,
    grpc::{Api, Credential, explain},
};
use gimbal_rpc::v1::{
    KickRequest, ListSessionsRequest, PushToAllRequest, PushToUsersRequest, RevokeTokensRequest, Session,
    StatsRequest,
};
use serde_json::{Value, json};

use super::{GrpcArgs, KeyArgs, small_runtime};

/// Sessions in one page.
const PAGE: u32 = 1_000;
/// Users in one push call.
const USERS_MAX: usize = 512;
/// A later time is one of another unit, and its milliseconds might not fit.
const SECONDS_MAX: i64 = 1 << 40;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    grpc: GrpcArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Sessions that are online (admin key).
    Sessions {
        /// Only this user's
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        user: u64,
        /// Most sessions printed
        #[arg(long, default_value_t = 100_000)]
        limit: usize,
    },
    /// Close sessions of a user (admin key).
    Kick {
        /// The user
        #[arg(long)]
        user: u64,
        /// Only this device's [default: all of the user's]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        device: u64,
    },
    /// End all tokens of a user that were issued before a time, and the sessions that began with them; for ever (admin key).
    Revoke(Revoke),
    /// Push a message to users, or to every session that is online (backend key).
    Push(Push),
    /// Figures of the control plane (admin key).
    Stats,
    /// What happened to a message: stored, pushed, answered, acknowledged, or why not (admin key).
    Trace(trace::Trace),
}

#[derive(clap::Args, Debug)]
struct Revoke {
    /// The user
    #[arg(long)]
    user: u64,
    /// Unix seconds, not in the future, as `date +%s` prints them [default: now]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(i64).range(0..SECONDS_MAX))]
    before: i64,
    /// A repeated call with the same key is the same call
    #[arg(long, default_value = "", hide_default_value = true)]
    idempotency_key: String,
}

#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("whom").required(true).args(["users", "all"]))]
struct Push {
    /// User ids, separated by commas
    #[arg(long, value_delimiter = ',')]
    users: Vec<u64>,
    /// Every online session; nothing is stored
    #[arg(long)]
    all: bool,
    /// The content
    #[arg(long)]
    text: String,
    /// Opaque type code
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    command: i32,
    /// To sessions online now only, not stored
    #[arg(long, conflicts_with = "all")]
    transient: bool,
    /// A repeated push with the same key is the same push
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "all")]
    idempotency_key: String,
    /// With --all: sessions per second and gateway [default: the gateway's own pace]
    #[arg(long, default_value_t = 0, hide_default_value = true, conflicts_with = "users")]
    per_second: u32,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    small_runtime()?.block_on(async {
        let api = args.grpc.connect().await?;
        let credential = Credential::bearer(&args.key.read()?)?;
        match args.verb {
            Verb::Sessions { user, limit } => {
                let sessions = list(&api, credential, user, limit).await?;
                match args.json {
                    true => {
                        gimbal::say!("{}", Value::from(sessions.iter().map(session_json).collect::<Vec<_>>()))
                    }
                    false => gimbal::output::print(format_args!("{}", table(&sessions))),
                }
            }
            Verb::Kick { user, device } => {
                let request = KickRequest { user_id: user, device_id: device };
                let reply =
                    api.admin(credential).kick(request).await.map_err(|status| explain("kick", &status))?;
                let kicked = reply.into_inner().kicked;
                show(args.json, json!({ "kicked": kicked }), &format!("{kicked} sessions kicked"));
            }
            Verb::Revoke(what) => revoke(&api, credential, what, args.json).await?,
            Verb::Push(what) if what.all => push_to_all(&api, credential, what, args.json).await?,
            Verb::Push(what) => return push_to_users(&api, credential, what, args.json).await,
            Verb::Trace(what) => trace::run(&api, credential, &what, args.json).await?,
            Verb::Stats => stats(&api, credential, args.json).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn show(is_json: bool, value: Value, text: &str) {
    match is_json {
        true => gimbal::say!("{value}"),
        false => gimbal::say!("{text}"),
    }
}

async fn list(api: &Api, credential: Credential, user: u64, limit: usize) -> Result<Vec<Session>> {
    let (mut admin, mut sessions, mut page_token) = (api.admin(credential), Vec::new(), String::new());
    loop {
        let request = ListSessionsRequest { user_id: user, page_size: PAGE, page_token };
        let reply = admin.list_sessions(request).await.map_err(|status| explain("list sessions", &status))?;
        let reply = reply.into_inner();
        sessions.extend(reply.sessions);
        if reply.next_page_token.is_empty() || sessions.len() >= limit {
            sessions.truncate(limit);
            return Ok(sessions);
        }
        page_token = reply.next_page_token;
    }
}

fn session_json(session: &Session) -> Value {
    json!({
        "user": session.user_id,
        "device": session.device_id,
        "gateway": session.gateway_id,
        "session": session.session,
        "attach": session.attach,
        "attached_at_ms": session.attached_at_ms,
        "peer": session.peer,
    })
}

fn table(sessions: &[Session]) -> String {
    let head = ["USER", "DEVICE", "GATEWAY", "SESSION", "SINCE (UTC)", "PEER"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(sessions.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(session: &Session) -> [String; 6] {
    [
        session.user_id.to_string(),
        session.device_id.to_string(),
        session.gateway_id.to_string(),
        session.session.clone(),
        time_of_day(session.attached_at_ms),
        session.peer.clone(),
    ]
}

async fn revoke(api: &Api, credential: Credential, what: Revoke, is_json: bool) -> Result<()> {
    let Revoke { user, before, idempotency_key } = what;
    let request = RevokeTokensRequest { user_id: user, before_ms: 1_000 * before, idempotency_key };
    let reply =
        api.accounts(credential).revoke_tokens(request).await.map_err(|status| explain("revoke", &status))?;
    let reply = reply.into_inner();
    show(
        is_json,
        json!({ "before_ms": reply.before_ms, "devices": reply.devices }),
        &format!(
            "tokens of user {user} issued before {} (Unix ms) open nothing; {} devices had one of ours",
            reply.before_ms, reply.devices
        ),
    );
    Ok(())
}

async fn push_to_all(api: &Api, credential: Credential, what: Push, is_json: bool) -> Result<()> {
    let request =
        PushToAllRequest { command: what.command, content: what.text.into(), per_second: what.per_second };
    let reply = api
        .messages(credential)
        .push_to_all(request)
        .await
        .map_err(|status| explain("push to all", &status))?;
    let gateways = reply.into_inner().gateways;
    show(is_json, json!({ "gateways": gateways }), &format!("handed to {gateways} gateways"));
    Ok(())
}

async fn push_to_users(api: &Api, credential: Credential, what: Push, is_json: bool) -> Result<ExitCode> {
    if what.users.len() > USERS_MAX {
        bail!("at most {USERS_MAX} users in one push");
    }
    let request = PushToUsersRequest {
        user_ids: what.users,
        command: what.command,
        content: what.text.into(),
        transient: what.transient,
        idempotency_key: what.idempotency_key,
    };
    let reply =
        api.messages(credential).push_to_users(request).await.map_err(|status| explain("push", &status))?;
    let reply = reply.into_inner();
    if is_json {
        let users: Vec<Value> = reply
            .users
            .iter()
            .map(|user| json!({ "user": user.user_id, "seq": user.seq, "reason": user.reason }))
            .collect();
        gimbal::say!("{}", json!({ "message_id": reply.message_id, "users": users }));
    } else {
        for user in &reply.users {
            match user.reason.as_str() {
                "" if user.seq == 0 => gimbal::say!("user {}: passed on", user.user_id),
                "" => gimbal::say!(
                    "user {}: stored as seq {} (message id {})",
                    user.user_id,
                    user.seq,
                    reply.message_id
                ),
                reason => gimbal::say!("user {}: {reason}", user.user_id),
            }
        }
    }
    let failed = reply.users.iter().any(|user| !user.reason.is_empty());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn stats(api: &Api, credential: Credential, is_json: bool) -> Result<()> {
    let reply =
        api.admin(credential).stats(StatsRequest {}).await.map_err(|status| explain("stats", &status))?;
    let stats = reply.into_inner();
    let rows = [
        ("sessions", stats.sessions),
        ("users_online", stats.users_online),
        ("gateways", stats.gateways),
        ("rooms", stats.rooms),
        ("commands", stats.commands),
        ("commits", stats.commits),
        ("wal_syncs", stats.wal_syncs),
        ("sends", stats.sends),
        ("control_epoch", stats.control_epoch),
    ];
    if is_json {
        let object: serde_json::Map<String, Value> =
            rows.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        gimbal::say!("{}", Value::Object(object));
    } else {
        rows.iter().for_each(|(name, value)| gimbal::say!("{name:<14} {value}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_has_no_trailing_spaces() {
        let session = Session { user_id: 10_000, peer: "127.0.0.1:1".into(), ..Session::default() };
        let text = table(&[session, Session::default()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| *line == line.trim_end()));
        assert_eq!(lines[0].find("DEVICE"), lines[1].find('0').map(|_| 7));
    }
}
