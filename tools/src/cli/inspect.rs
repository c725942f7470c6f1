//! `gimbal inspect`: bytes to text.

use std::{io::Read as _, process::ExitCode};

use anyhow::{Context as _, Result};
use gimbal::inspect::{Side, describe_frames, parse_hex};

/// What to inspect.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// Frames of the wire, as hexadecimal digits.
    Frame {
        /// Hexadecimal digits, spaces allowed; `-` reads them from standard input
        #[arg(required = true, value_name = "HEX")]
        hex: Vec<String>,
        /// Who wrote them
        #[arg(long, value_enum, default_value = "auto")]
        from: Side,
    },
}

/// Bytes of hexadecimal text read from standard input at most.
const INPUT_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Frame { hex, from } => {
            let mut text = hex.join(" ");
            if text == "-" {
                text.clear();
                let input = std::io::stdin().take(INPUT_BYTES_MAX).read_to_string(&mut text);
                input.context("standard input is not text")?;
            }
            print!("{}", describe_frames(&parse_hex(&text)?, from)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
