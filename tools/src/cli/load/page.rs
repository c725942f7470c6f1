//! `gimbal load report`: earlier runs on one page.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use gimbal::report::{Report, write_page};

#[derive(clap::Args, Debug)]
pub(crate) struct Page {
    /// What runs wrote with --json
    #[arg(required = true, value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE.html")]
    report: PathBuf,
}

impl Page {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let mut reports = Vec::new();
        for path in &self.files {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                let report: Report = serde_json::from_str(line)
                    .with_context(|| format!("{} is not a report of gimbal load", path.display()))?;
                reports.push(report);
            }
        }
        anyhow::ensure!(!reports.is_empty(), "there is no report in these files");
        write_page(&self.report, &reports)?;
        gimbal::say!("{} reports on {}", reports.len(), self.report.display());
        Ok(ExitCode::SUCCESS)
    }
}
