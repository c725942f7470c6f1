//! What a run needs of the machine, checked before it starts: descriptors here and at the server, and local ports.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::Target;
use crate::proc::{open_files_max, raise_open_files};

/// Descriptors of a client process beside its connections: epoll, gRPC, files.
const CLIENT_SPARE: u64 = 64;
/// Descriptors of a server beside its connections: the store's files, listeners, rings.
const SERVER_SPARE: u64 = 512;

/// Raises our own limit and checks that `connections` at once fit; `processes` share them evenly.
///
/// # Errors
/// What is short, and the limit or sysctl to change.
pub fn check(target: &Target, connections: usize) -> Result<()> {
    let files = raise_open_files();
    let server = target.pids.iter().filter_map(|&pid| open_files_max(pid)).max();
    let ports =
        fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").context("no range of local ports")?;
    Machine { files, server_files: server, ports: port_count(&ports) }.check(target, connections as u64)
}

/// How many ports a line as `32768 60999` allows.
fn port_count(range: &str) -> u64 {
    let mut bounds = range.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (first, last) = (bounds.next().unwrap_or(32_768), bounds.next().unwrap_or(60_999));
    (last + 1).saturating_sub(first)
}

struct Machine {
    /// Open files of each client process.
    files: u64,
    /// Open files of the server, when it is on this machine.
    server_files: Option<u64>,
    /// Local ports of each source address.
    ports: u64,
}

impl Machine {
    fn check(&self, target: &Target, connections: u64) -> Result<()> {
        let processes = target.processes.max(1) as u64;
        let each = connections.div_ceil(processes);
        if each + CLIENT_SPARE > self.files {
            let enough = connections.div_ceil(self.files.saturating_sub(CLIENT_SPARE).max(1));
            bail!(
                "{each} connections in one client process need {} open files, and its hard limit is {}: raise it \
                 (ulimit -Hn, LimitNOFILE=), or use --processes {enough} where the scenario has it",
                each + CLIENT_SPARE,
                self.files
            );
        }
        if let Some(files) = self.server_files.filter(|&files| connections + SERVER_SPARE > files) {
            bail!(
                "{connections} connections need {} open files in the server, and its hard limit is {files}: raise it \
                 (ulimit -Hn, LimitNOFILE=)",
                connections + SERVER_SPARE
            );
        }
        let sources = target.sources.len().max(1) as u64;
        if connections.div_ceil(sources) > self.ports {
            bail!(
                "{connections} connections from {sources} source addresses need more than the {} local ports each \
                 of them has: sysctl -w net.ipv4.ip_local_port_range=\"10000 65535\", or --source 127.0.0.0/24",
                self.ports
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(processes: usize, sources: usize) -> Target {
        let sources = crate::load::source::parse("127.0.0.0/24").expect("a network")[..sources].to_vec();
        Target { processes, sources, ..Target::of_process(std::process::id()) }
    }

    #[test]
    fn each_shortage_is_named_with_its_remedy() {
        let machine = Machine { files: 1_000, server_files: Some(3_000), ports: 2_000 };
        let text = |processes, sources, connections| {
            machine.check(&target(processes, sources), connections).map_err(|error| error.to_string())
        };
        assert!(text(1, 0, 900).is_ok());
        assert!(
            text(1, 0, 1_000)
                .is_err_and(|text| text.contains("ulimit -Hn") && text.contains("--processes 2"))
        );
        assert!(text(4, 0, 2_400).is_err_and(|text| text.contains("ip_local_port_range")));
        assert!(text(4, 2, 2_400).is_ok());
        assert!(text(9, 9, 2_900).is_err_and(|text| text.contains("in the server")));
    }

    #[test]
    fn a_range_of_ports_is_counted() {
        assert_eq!(port_count("32768\t60999\n"), 28_232);
        assert_eq!(port_count("9 8"), 0);
    }
}
