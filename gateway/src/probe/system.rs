//! Reads of `/proc`.

use std::fs;

/// CAP_IPC_LOCK (capabilities(7)): locked memory is not limited.
const CAP_IPC_LOCK: u32 = 14;

/// A kernel's number, as far as features go by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Kernel {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Kernel {
    /// From `6.1.0-18-amd64` and the like.
    pub(super) fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

/// As `uname -r`; empty when it cannot be read.
pub(super) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// A file that holds one number.
pub(super) fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A decimal field of `/proc/self/status`.
pub(super) fn status_number(field: &str) -> Option<u64> {
    status_field(field)?.parse().ok()
}

/// Whether this process may lock memory without limit.
pub(super) fn has_ipc_lock() -> bool {
    let effective = status_field("CapEff").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    effective.is_some_and(|mask| mask & (1 << CAP_IPC_LOCK) != 0)
}

fn status_field(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_numbers_compare_by_their_parts() {
        let parse = |release| Kernel::parse(release).unwrap();
        assert!(parse("6.10.3-amd64") > parse("6.9") && parse("6.1.0-18") == Kernel { major: 6, minor: 1 });
        assert_eq!(Kernel::parse("six"), None);
    }
}
