//! Arguments and verbs.

mod admin;
mod cert;
mod client;
mod config;
mod control;
mod doctor;
mod gateway;
mod inspect;
mod load;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use gimbal::grpc::Api;

/// A messaging server: gateway, control plane, client and tools in one binary.
#[derive(Parser, Debug)]
#[command(name = "gimbal", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run gateway and control plane in one process.
    Serve(serve::Args),
    /// Run a gateway alone, linked to a control plane.
    Gateway(gateway::Args),
    /// Run a control plane alone.
    Control(control::Args),
    /// Be a client: listen, send, sync, rooms.
    #[command(subcommand)]
    Client(client::Verb),
    /// Ask a running server: sessions, kick, revoke, push, stats.
    Admin(admin::Args),
    /// Turn bytes of the wire or of a store into text.
    #[command(subcommand)]
    Inspect(inspect::Verb),
    /// Measure a server under load, with a ledger that finds loss, duplicates and reordering.
    #[command(subcommand)]
    Load(load::Verb),
    /// Tell what this machine lacks for a gateway, and how to mend it.
    Doctor(doctor::Args),
    /// Make an authority and certificates for one's own machines.
    Cert(cert::Args),
    /// Print the default configuration, or check a file.
    #[command(subcommand)]
    Config(config::Verb),
}

/// Runs one verb.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Gateway(args) => gateway::run(args),
        Verb::Control(args) => control::run(args),
        Verb::Client(verb) => client::run(verb),
        Verb::Admin(args) => admin::run(args),
        Verb::Inspect(verb) => inspect::run(verb),
        Verb::Load(verb) => load::run(verb),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Cert(args) => cert::run(args),
        Verb::Config(verb) => config::run(verb),
    }
}

/// Control's gRPC port.
#[derive(Args, Clone, Debug)]
pub(crate) struct GrpcArgs {
    /// Address of control's gRPC port
    #[arg(
        long,
        global = true,
        env = "GIMBAL_GRPC",
        default_value = "http://127.0.0.1:8010",
        value_name = "URL"
    )]
    pub(crate) grpc: String,
    /// File with the authority of control's certificate, for an https URL
    #[arg(long, global = true, env = "GIMBAL_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

impl GrpcArgs {
    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Api> {
        Api::connect_with(&self.grpc, self.ca.as_deref()).await
    }
}

/// A backend or admin key. On a shared machine prefer the file: arguments are visible to others.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyArgs {
    /// Key of a backend or administrator [default: the development key]
    #[arg(long, global = true, env = "GIMBAL_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// File whose first line is the key
    #[arg(long, global = true, env = "GIMBAL_KEY_FILE", conflicts_with = "key", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The key.
    pub(crate) fn read(&self) -> Result<String> {
        match (&self.key, &self.key_file) {
            (Some(key), _) => Ok(key.clone()),
            (None, None) => Ok(DEV_KEY.to_owned()),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok(text.lines().next().unwrap_or_default().trim().to_owned())
            }
        }
    }
}

/// What a server that was started with `--dev` and no key files accepts.
const DEV_KEY: &str = "dev";

/// A runtime for verbs that wait more than they work.
pub(crate) fn small_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// The runtime of a server: tonic's threads.
pub(crate) fn server_runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.thread_name("gimbal-control").enable_all().build().context("cannot start a runtime")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_line_parses() {
        let lines = [
            "serve --dev",
            "serve --config gimbal.toml --data /var/lib/gimbal --shards 2",
            "gateway --control http://127.0.0.1:8010 --link-key-file key",
            "control --data data --grpc-listen 127.0.0.1:8010",
            "doctor --json",
            "inspect store data --cf mailbox --limit 10",
            "cert --dir certs --name chat.example --client push.example --days 30",
            "config default",
            "config check gimbal.toml",
            "client listen --phone 13800000001",
            "client listen --user-phone 1 --state /tmp/x --count 3",
            "client send --phone 2 --to 10000 hello",
            "client sync --phone 2 --after 3 --limit 10",
            "client listen --phone 2 --tls --gateway-ca certs/ca.pem",
            "client listen --token-file token --tls --websocket --gateway-ca certs/ca.pem",
            "client send --token-file token --device cli --to 10000 hello",
            "client room join --phone 2 7",
            "client room publish 7 text",
            "client room count 7 8",
            "admin sessions --json",
            "admin --json sessions --user 3",
            "admin sessions --grpc 127.0.0.1:9010 --key k",
            "admin kick --user 10000 --device 10001",
            "admin revoke --user 10000",
            "admin revoke --user 10000 --before 1800000000 --idempotency-key k --json",
            "admin push --users 1,2 --text x",
            "admin push --all --text x",
            "admin stats",
            "admin stats --grpc https://control.example:8010 --ca ca.pem",
            "inspect frame 0210 --from server",
            "inspect frame -",
            "load steady --start --connections 100 --rate 0 --window 16",
            "load steady --target 127.0.0.1:8002 --rate 20000 --json -",
            "load idle --start --low 2000 --high 10000",
            "load room --start --members 1000 --bare",
            "load report a.json b.json --report page.html",
            "load connect --start --connections 10000 --rate 2000 --processes 2 --source 127.0.0.0/24",
            "load connect --start --open 0 --report page.html",
            "load idle --start --low 2000 --high 18000 --heartbeat 25 --processes 2",
            "load slow --start --members 1000 --stalled 0.1",
            "load reconnect --start --connections 2000 --missed 10",
            "load group --start --users 1024 --group 512 --rate 20",
            "load mixed --start --users 1000 --duration 60",
        ];
        for line in lines {
            let words = std::iter::once("gimbal").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn senseless_lines_are_refused() {
        for line in [
            "",
            "fly",
            "admin push --text x",
            "admin revoke",
            "admin revoke --user 1 --before -1",
            "admin push --all --users 1 --text x",
            "client listen",
            "client listen --phone 1 --token-file token",
            "client listen --phone 1 --tls",
            "client listen --phone 1 --tls --quic --gateway-ca certs/ca.pem",
            "load steady --rate x",
            "load report --report page.html",
            "inspect store d --cf x",
        ] {
            let words = std::iter::once("gimbal").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
