//! The bare echo as a child process: `gimbal load bare-echo`.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::load::{pin, sockets::Sockets};

/// The child, seen from the parent; killed when dropped.
pub struct Bare {
    child: Child,
    address: SocketAddr,
}

impl Bare {
    /// Starts the child on `cores`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(cores: Option<&str>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("where is this binary?")?);
        command.args(["load", "bare-echo"]);
        command.args(cores.iter().flat_map(|cores| ["--cores", cores]));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("no bare echo")?;
        let stdout = child.stdout.take().context("no output of the bare echo")?;
        let mut bare = Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("the bare echo says nothing")?;
        bare.address = line.trim().parse().context("the bare echo does not say its port")?;
        Ok(bare)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `count` connections to it.
    ///
    /// # Errors
    /// When one fails.
    pub fn connect(&self, count: usize) -> Result<Sockets> {
        let mut sockets = Sockets::new().context("no epoll")?;
        for _ in 0..count {
            sockets.connect(self.address).context("cannot connect to the bare echo")?;
        }
        Ok(sockets)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's whole life: listens on `port` (0: a free one), prints its address, echoes until it is killed.
///
/// # Errors
/// When it cannot listen or the ring fails.
pub fn serve(port: u16, cores: Option<&str>) -> Result<()> {
    cores.map(pin).transpose()?;
    crate::proc::raise_open_files();
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("cannot listen on {port}"))?;
    println!("{}", listener.local_addr()?);
    match gimbal_gateway::bare::echo(listener).context("the bare echo's ring")? {}
}
