//! `gimbal doctor`: what this machine lacks, and how to mend it, without starting anything.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::ExitCode,
};

use anyhow::Result;
use gimbal::config::{CommonFlags, Config, ControlFlags, Flags, GatewayFlags};
use gimbal_gateway::probe::{self, Finding, Level};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    gateway: GatewayFlags,
    #[command(flatten)]
    control: ControlFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let flags =
        Flags { common: args.common, gateway: args.gateway, control: args.control, ..Flags::default() };
    let config = Config::load(&flags)?;
    let mut findings = probe::run(&config.gateway);
    findings.push(port("client port", config.gateway.listen));
    if let Some(address) = config.gateway.websocket.listen {
        findings.push(port("websocket port", address));
    }
    if let (Some(address), Some(_)) = (config.gateway.quic.listen, &config.gateway.tls.certificate) {
        findings.push(freedom("quic port", address, UdpSocket::bind(address).map(drop), "ss -lunp"));
    }
    findings.push(port("grpc port", config.control.grpc_listen));
    findings.push(port("http port", config.control.http_listen));
    findings.push(data_dir(&config.control.data_dir));
    findings.push(keys(&config, flags.common.dev));
    match args.json {
        true => gimbal::say!("{}", serde_json::to_string(&findings)?),
        false => findings.iter().for_each(print),
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(finding: &Finding) {
    gimbal::say!("{:<5} {:<18} {}", finding.level, finding.name, finding.what);
    if let Some(fix) = &finding.fix {
        gimbal::say!("      {:<18} -> {fix}", "");
    }
}

fn ok(name: &'static str, what: String) -> Finding {
    Finding { name, level: Level::Ok, what, fix: None }
}

fn bad(name: &'static str, level: Level, what: String, fix: &str) -> Finding {
    Finding { name, level, what, fix: Some(fix.to_owned()) }
}

fn port(name: &'static str, address: SocketAddr) -> Finding {
    freedom(name, address, TcpListener::bind(address).map(drop), "ss -ltnp")
}

/// What came of a try to bind `address`; `shows` is the command that shows who has it.
fn freedom(name: &'static str, address: SocketAddr, tried: io::Result<()>, shows: &str) -> Finding {
    match tried {
        Ok(()) => ok(name, format!("{address} is free")),
        Err(error) => {
            let fix = format!(
                "stop what listens there (`{shows}` shows it; a running gimbal is one), or set another address"
            );
            bad(name, Level::Fail, format!("cannot listen on {address}: {error}"), &fix)
        }
    }
}

/// Whether it, or the directory it would be made in, can be written; nothing is left behind.
fn data_dir(dir: &Path) -> Finding {
    const NAME: &str = "data directory";
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let usable = fs::metadata(existing).and_then(|meta| match meta.is_dir() {
        true => tempfile::tempfile_in(existing).map(drop),
        false => Err(std::io::Error::other("not a directory")),
    });
    match usable {
        Ok(()) if existing == dir => ok(NAME, format!("{} can be written", dir.display())),
        Ok(()) => ok(NAME, format!("{} can be made", dir.display())),
        Err(error) => {
            let fix = "give the service's user the right to write there, or set control.data_dir";
            bad(NAME, Level::Fail, format!("{}: {error}", existing.display()), fix)
        }
    }
}

fn keys(config: &Config, dev: bool) -> Finding {
    const NAME: &str = "keys";
    match config.control.clone().check(dev) {
        Ok(checked) if checked.warnings.is_empty() => ok(NAME, "set".into()),
        Ok(checked) => {
            bad(NAME, Level::Warn, checked.warnings.join("; "), "see [control] of `gimbal config default`")
        }
        Err(error) => {
            bad(NAME, Level::Fail, error.to_string(), "name key files under [control], or use --dev here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_data_directory_can_be_made_where_we_may_write() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(data_dir(&dir.path().join("a/b")).level, Level::Ok);
        assert_eq!(data_dir(Path::new("/proc/none")).level, Level::Fail);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_busy_port_is_found() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(port("client port", held.local_addr().unwrap()).level, Level::Fail);
    }

    #[test]
    fn missing_keys_fail_outside_of_dev_only() {
        assert_eq!(keys(&Config::default(), false).level, Level::Fail);
        assert_eq!(keys(&Config::default(), true).level, Level::Warn);
    }
}
