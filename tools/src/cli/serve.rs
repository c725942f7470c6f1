//! `gimbal serve`: everything in one process.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use gimbal::{
    config::{CommonFlags, Config, ControlFlags, Flags, GatewayFlags},
    node::{Node, Reload, Stop, start_log},
    output::tell,
};

use super::server_runtime;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    gateway: GatewayFlags,
    #[command(flatten)]
    control: ControlFlags,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let dev = args.common.dev;
    let flags =
        Flags { common: args.common, gateway: args.gateway, control: args.control, ..Flags::default() };
    let config = Config::load(&flags)?;
    start_log(&config.log)?;
    server_runtime()?.block_on(async {
        let stop = Stop::new()?;
        let reload = Reload::new(flags, config.clone())?;
        let (drain_over, data_dir) = (config.process.drain_over, config.control.data_dir.clone());
        let node = Node::start(config, dev).await.context("gimbal does not start")?;
        tell(&banner(&node, &data_dir.display().to_string(), dev));
        node.run(stop, reload, drain_over).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What runs where, what to beware of, and what to try next.
fn banner(node: &Node, data: &str, dev: bool) -> String {
    let control = node.control();
    let (tcp, grpc, http) = (node.gateway().local_addr(), control.grpc_address(), control.http_address());
    let shown = |address: Option<std::net::SocketAddr>| address.map_or("off".to_owned(), |at| at.to_string());
    let (websocket, tls) = (shown(node.gateway().websocket_addr()), shown(node.gateway().tls_addr()));
    let (websocket_tls, quic) =
        (shown(node.gateway().websocket_tls_addr()), shown(node.gateway().quic_addr()));
    let chat = if dev { ", a chat for browsers at /chat/" } else { "" };
    let mut text = format!(
        "gimbal {} is running\n  \
           TCP   {tcp:<22} clients\n  \
           WS    {websocket:<22} clients over WebSocket\n  \
           TLS   {tls:<22} clients over TCP in TLS; over WebSocket: {websocket_tls}\n  \
           QUIC  {quic:<22} clients over QUIC (UDP)\n  \
           gRPC  {grpc:<22} backends, administrators, sign-in by phone\n  \
           HTTP  {http:<22} /healthz /readyz /metrics{chat}\n  \
           data  {data}\n",
        env!("CARGO_PKG_VERSION"),
    );
    if !control.warnings().is_empty() {
        text.push_str("\n*** WARNING ***\n");
        control.warnings().iter().for_each(|warning| text.push_str(&format!("  {warning}\n")));
    }
    let program = std::env::args().next().unwrap_or_else(|| "gimbal".into());
    let grpc = if grpc.port() == 8010 { String::new() } else { format!(" --grpc {grpc}") };
    let both = if tcp.port() == 8002 { grpc.clone() } else { format!("{grpc} --address {tcp}") };
    text.push_str(&format!(
        "\nTry next, each in a terminal of its own:\n  \
           {program} client listen --phone 13800000001{both}\n  \
           {program} client send --phone 13800000002 --to 10000 \"hello\"{both}\n  \
           {program} client room join --phone 13800000001 7{both}   then: {program} client room publish 7 \"hi all\"{grpc}\n"
    ));
    text
}
