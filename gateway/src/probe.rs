//! What this machine offers a gateway, without starting one: `gimbal doctor` prints it.

mod system;

use std::fmt;

use serde::Serialize;

use crate::config::Config;
use crate::ring::os::{self, Limit, Resource};
use crate::ring::setup::{self, Mode};
use system::{Kernel, read_number};

/// Oldest kernel with all that the ring uses: DEFER_TASKRUN came with 6.1.
const KERNEL_MIN: Kernel = Kernel { major: 6, minor: 1 };

/// Descriptors beside those of connections: log, store, rings, listeners.
const FILES_RESERVE: u64 = 512;

/// Locked memory that the rings of one shard take: ours and glommio's three.
const LOCKED_BYTES_PER_SHARD: u64 = 1 << 20;

/// How good a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, with less speed or fewer connections.
    Warn,
    /// A gateway does not start.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Short and stable.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// How to mend it, unless it is as it should be.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, what: what.into(), fix: None }
    }

    fn bad(name: &'static str, level: Level, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, level, what: what.into(), fix: Some(fix.into()) }
    }
}

/// Looks at kernel and limits as a gateway with `config` would need them. Sets up a small ring for a moment and opens a
/// connection to itself on loopback; changes nothing.
pub fn run(config: &Config) -> Vec<Finding> {
    let cores = os::allowed_cores().unwrap_or_default();
    let shards = match config.shards {
        0 => cores.len().saturating_sub(1).max(1) as u64,
        count => count.into(),
    };
    let mut findings = vec![kernel(), disabled(), seccomp()];
    findings.extend(ring());
    findings.push(files(config));
    findings.push(locked_memory(shards));
    findings.push(backlog(config));
    findings.push(core_count(cores.len() as u64, shards));
    findings
}

fn kernel() -> Finding {
    const NAME: &str = "kernel";
    let release = system::kernel_release();
    match Kernel::parse(&release) {
        Some(kernel) if kernel >= KERNEL_MIN => Finding::ok(NAME, release),
        Some(_) => Finding::bad(NAME, Level::Fail, release, "use Linux 6.1 or newer"),
        None => Finding::bad(
            NAME,
            Level::Warn,
            format!("{release:?} is not understood"),
            "use Linux 6.1 or newer",
        ),
    }
}

fn disabled() -> Finding {
    const NAME: &str = "io_uring_disabled";
    match read_number("/proc/sys/kernel/io_uring_disabled") {
        None => Finding::ok(NAME, "the kernel has no such setting"),
        Some(0) => Finding::ok(NAME, "0"),
        Some(1) => Finding::bad(
            NAME,
            Level::Warn,
            "1: only for processes of kernel.io_uring_group or with CAP_SYS_ADMIN",
            "sysctl kernel.io_uring_disabled=0, or add the service's group as kernel.io_uring_group",
        ),
        Some(value) => Finding::bad(
            NAME,
            Level::Fail,
            format!("{value}: for nobody"),
            "sysctl kernel.io_uring_disabled=0",
        ),
    }
}

fn seccomp() -> Finding {
    const NAME: &str = "seccomp";
    match system::status_number("Seccomp") {
        Some(0) | None => Finding::ok(NAME, "no filter"),
        Some(_) => Finding::ok(
            NAME,
            "a filter is in force (a container?); the rings below show whether it lets us work",
        ),
    }
}

/// What the rings need, tried for real.
fn ring() -> Vec<Finding> {
    let tried = match setup::try_all() {
        Ok(tried) => tried,
        Err(error) => {
            return vec![Finding::bad("io_uring", Level::Fail, error.to_string(), setup::explain(&error))];
        }
    };
    let newer = "use Linux 6.1 or newer";
    let mode = match tried.mode {
        Mode::Deferred => Finding::ok("io_uring", tried.mode.text()),
        mode => Finding::bad("io_uring", Level::Warn, format!("{}: slower", mode.text()), newer),
    };
    let need = |name, result: Result<(), std::io::Error>| match result {
        Ok(()) => Finding::ok(name, "works"),
        Err(error) => Finding::bad(name, Level::Fail, error.to_string(), setup::explain(&error)),
    };
    vec![
        mode,
        need("receive_buffers", tried.buffers),
        need("multishot_accept", tried.accept),
        need("multishot_receive", tried.receive),
    ]
}

fn files(config: &Config) -> Finding {
    const NAME: &str = "descriptors";
    let limit = match os::limit(Resource::Files) {
        Ok(limit) => limit,
        Err(error) => {
            return Finding::bad(NAME, Level::Warn, error.to_string(), "getrlimit(2) should not fail");
        }
    };
    let wanted = u64::from(config.connections_max) + FILES_RESERVE;
    let what = format!("{}; for {} connections {wanted} are needed", show(limit), config.connections_max);
    if limit.hard >= wanted {
        return Finding::ok(NAME, what);
    }
    let level = if limit.hard < FILES_RESERVE { Level::Fail } else { Level::Warn };
    let fix = format!(
        "LimitNOFILE={wanted} in the systemd unit, or ulimit -Hn {wanted}; above {} also sysctl fs.nr_open",
        read_number("/proc/sys/fs/nr_open").unwrap_or_default()
    );
    Finding::bad(NAME, level, what, fix)
}

fn locked_memory(shards: u64) -> Finding {
    const NAME: &str = "locked_memory";
    let limit = match os::limit(Resource::LockedMemory) {
        Ok(limit) => limit,
        Err(error) => {
            return Finding::bad(NAME, Level::Warn, error.to_string(), "getrlimit(2) should not fail");
        }
    };
    let wanted = shards * LOCKED_BYTES_PER_SHARD;
    let what = format!(
        "{} bytes; {shards} shards need about {wanted}, and all processes of a user share it",
        show(limit)
    );
    if limit.hard >= wanted || system::has_ipc_lock() {
        return Finding::ok(NAME, what);
    }
    let level = if limit.hard < LOCKED_BYTES_PER_SHARD / 2 { Level::Fail } else { Level::Warn };
    Finding::bad(NAME, level, what, "LimitMEMLOCK=64M in the systemd unit, or ulimit -Hl 65536")
}

fn backlog(config: &Config) -> Finding {
    const NAME: &str = "backlog";
    match read_number("/proc/sys/net/core/somaxconn") {
        Some(max) if max < config.backlog.into() => Finding::bad(
            NAME,
            Level::Warn,
            format!(
                "net.core.somaxconn is {max}, below the configured {}: a rush of connections is dropped",
                config.backlog
            ),
            format!("sysctl net.core.somaxconn={}", config.backlog),
        ),
        Some(max) => Finding::ok(NAME, format!("net.core.somaxconn is {max}")),
        None => Finding::ok(NAME, "net.core.somaxconn cannot be read here"),
    }
}

fn core_count(cores: u64, shards: u64) -> Finding {
    const NAME: &str = "cores";
    let what = format!("{cores} allowed, {shards} shards");
    if shards <= cores.max(1) {
        return Finding::ok(NAME, what);
    }
    Finding::bad(
        NAME,
        Level::Warn,
        what,
        "configure at most as many shards as cores; one fewer leaves one to control",
    )
}

fn show(limit: Limit) -> String {
    let show = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    if limit.soft == limit.hard {
        return show(limit.soft);
    }
    format!("{} (raised by itself to {})", show(limit.soft), show(limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_looked_at_once_and_what_is_bad_has_a_fix() {
        let findings = run(&Config::default());
        let mut names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() == findings.len() && names.len() >= 8, "{names:?}");
        assert!(
            findings.iter().all(|finding| (finding.level == Level::Ok) == finding.fix.is_none()),
            "{findings:?}"
        );
        let failed: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert!(failed.is_empty(), "these tests need a machine that can run a gateway: {failed:?}");
    }
}
