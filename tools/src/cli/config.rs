//! `gimbal config`: the file's defaults, and whether a file is valid.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use gimbal::config::{Config, DEFAULT_TOML};

/// What to do with a configuration.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// Print a complete file with every key, its default and its meaning.
    Default,
    /// Check a file as a start would, key files included.
    Check {
        /// The file
        file: PathBuf,
        /// As a start with --dev would
        #[arg(long)]
        dev: bool,
    },
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Default => gimbal::output::print(format_args!("{DEFAULT_TOML}")),
        Verb::Check { file, dev } => {
            let config = Config::read(&file)?;
            config.check_bounds()?;
            for warning in config.control.check(dev)?.warnings {
                gimbal::say!("warning: {warning}");
            }
            gimbal::say!("{} is valid", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
