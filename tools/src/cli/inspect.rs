//! `gimbal inspect`: bytes to text.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use gimbal::inspect::{Side, describe_frames, parse_hex};
use gimbal_control::store::{Scan, Table, inspect::describe_all, rocks::RocksStore};

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
    /// Keys and values of a data directory, also while a server has it open; no token is in it, and no content is shown.
    Store {
        /// The data directory
        dir: PathBuf,
        /// Only this table [default: all]
        #[arg(long, value_name = "NAME", value_parser = table)]
        cf: Option<Table>,
        /// Most lines of each table
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
}

fn table(name: &str) -> Result<Table, String> {
    let names = || Table::ALL.map(Table::name).join(", ");
    Table::from_name(name).ok_or_else(|| format!("the tables are {}", names()))
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
            gimbal::output::print(format_args!("{}", describe_frames(&parse_hex(&text)?, from)?));
        }
        Verb::Store { dir, cf, limit } => store(&dir, cf, limit)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn store(dir: &Path, only: Option<Table>, limit: u64) -> Result<()> {
    anyhow::ensure!(dir.is_dir(), "{} is not a directory", dir.display());
    let store = RocksStore::inspect(dir)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for table in Table::ALL.into_iter().filter(|table| only.is_none_or(|only| only == *table)) {
        let (mut left, mut written) = (limit, Ok(()));
        describe_all(&store, table, &mut |line| {
            if left == 0 {
                return Scan::Stop;
            }
            left -= 1;
            written = writeln!(out, "{line}");
            if written.is_ok() { Scan::Continue } else { Scan::Stop }
        })
        .with_context(|| format!("table {}", table.name()))?;
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()), // `| head` has seen enough
            other => other.context("cannot write")?,
        }
    }
    Ok(())
}
