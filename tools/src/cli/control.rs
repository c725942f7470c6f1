//! `gimbal control`: the control plane alone.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use gimbal::{
    config::{CommonFlags, Config, ControlFlags, Flags},
    node::{Reload, Stop, run_control, start_control, start_log},
    output::tell,
};

use super::server_runtime;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    control: ControlFlags,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let dev = args.common.dev;
    let flags = Flags { common: args.common, control: args.control, ..Flags::default() };
    let config = Config::load(&flags)?;
    start_log(&config.log)?;
    server_runtime()?.block_on(async {
        let stop = Stop::new()?;
        let reload = Reload::new(flags, config.clone())?;
        let control = start_control(config, dev).await.context("control does not start")?;
        let (grpc, http) = (control.grpc_address(), control.http_address());
        tell(&format!("gimbal control is running\n  gRPC  {grpc}\n  HTTP  {http}\n"));
        control.warnings().iter().for_each(|warning| tell(&format!("  WARNING {warning}\n")));
        run_control(control, stop, reload).await;
        Ok(ExitCode::SUCCESS)
    })
}
