//! `gimbal gateway`: a gateway alone, linked to control over gRPC.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result};
use gimbal::{
    config::{CommonFlags, Config, EdgeFlags, Flags, GatewayFlags},
    node::{EdgeNode, Reload, Stop, start_log},
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
    edge: EdgeFlags,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let dev = args.common.dev;
    let flags = Flags { common: args.common, gateway: args.gateway, edge: args.edge, ..Flags::default() };
    let config = Config::load(&flags)?;
    start_log(&config.log)?;
    server_runtime()?.block_on(async {
        let stop = Stop::new()?;
        let reload = Reload::new(flags, config.clone())?;
        let (drain_over, control) = (config.process.drain_over, config.edge.control.clone());
        let node = EdgeNode::start(config, dev).await.context("the gateway does not start")?;
        let shown = |address: Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |at| at.to_string());
        let (websocket, quic) = (shown(node.gateway().websocket_addr()), shown(node.gateway().quic_addr()));
        tell(&format!(
            "gimbal gateway is running\n  TCP   {}\n  WS    {websocket}\n  QUIC  {quic}\n  HTTP  {}\n  control at {control}\n",
            node.gateway().local_addr(),
            node.http_address(),
        ));
        node.run(stop, reload, drain_over).await
    })?;
    Ok(ExitCode::SUCCESS)
}
