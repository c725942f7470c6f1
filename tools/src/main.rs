//! The one binary: `gimbal serve` and everything around it. Verbs live in `cli`, one file each.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gimbal: {error:#}");
            ExitCode::FAILURE
        }
    }
}
