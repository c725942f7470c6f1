//! The bound beside a room: a process that does nothing but one `send()` per socket.
//!
//! Parent and child speak over one more socket: a byte asks for a window, and the deliveries are the answer.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use gimbal_codec::frame;

use super::{Parameters, WINDOW_TIMEOUT};
use crate::{
    clock,
    load::{
        pin,
        sockets::{Event, Sockets},
    },
};

/// The child, seen from the parent.
pub struct Bare {
    child: Child,
    asks: TcpStream,
    sockets: Sockets,
    wanted: usize,
}

impl Bare {
    /// Starts the child and connects its members.
    ///
    /// # Errors
    /// When the child does not start or a connection fails.
    pub fn start(parameters: &Parameters, frame_bytes: usize, cores: Option<&str>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("where is this binary?")?);
        command.args(["load", "bare-sender"]);
        command.args([
            "--members",
            &parameters.members.to_string(),
            "--frame-bytes",
            &frame_bytes.to_string(),
        ]);
        command.args(["--window", &parameters.window.to_string()]);
        if let Some(cores) = cores {
            command.args(["--cores", cores]);
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("no bare sender")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no output of the bare sender")?;
        BufReader::new(stdout).read_line(&mut line).context("the bare sender says nothing")?;
        let address: SocketAddr = line.trim().parse().context("the bare sender does not say its port")?;
        let asks = TcpStream::connect(address).context("cannot connect to the bare sender")?;
        asks.set_nodelay(true)?;
        let mut sockets = Sockets::new()?;
        for _ in 0..parameters.members {
            sockets.connect(address).context("cannot connect to the bare sender")?;
        }
        Ok(Self { child, asks, sockets, wanted: parameters.members * parameters.window })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One window, complete when every member has all of it.
    ///
    /// # Errors
    /// When the child is gone or too slow.
    pub fn window(&mut self) -> Result<()> {
        self.asks.write_all(&[1]).context("the bare sender is gone")?;
        let deadline = clock::now() + WINDOW_TIMEOUT;
        let (mut got, mut closed) = (0, 0);
        while got < self.wanted {
            self.sockets.poll(Duration::from_millis(100), &mut |_, event, _| match event {
                Event::Frame(_) => got += 1,
                Event::Closed(_) => closed += 1,
            })?;
            ensure!(closed == 0 && clock::now() < deadline, "the bare sender fails");
        }
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's whole life: prints its address, takes the asking connection and then `members` more, and serves windows.
///
/// # Errors
/// When a socket fails; the end of the asking connection is a good end.
pub fn serve(members: usize, frame_bytes: usize, window: usize, cores: Option<&str>) -> Result<()> {
    cores.map(pin).transpose()?;
    crate::proc::raise_open_files();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    println!("{}", listener.local_addr()?);
    let (mut asks, _) = listener.accept()?;
    let mut sockets = Vec::with_capacity(members);
    for _ in 0..members {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    // Frames of the room's size, joined as an ideal server would.
    let bytes = one_frame(frame_bytes).repeat(window);
    let mut ask = [0];
    while asks.read(&mut ask)? == 1 {
        sockets.iter_mut().try_for_each(|socket| socket.write_all(&bytes))?;
    }
    Ok(())
}

/// A valid frame of `bytes`, or the smallest with a content when that is longer.
fn one_frame(bytes: usize) -> Vec<u8> {
    let mut content = vec![b'.'; bytes];
    loop {
        let made = frame(gimbal_codec::Command::Message, "", 0, content.as_slice());
        if made.len() <= bytes || content.is_empty() {
            return made.to_vec();
        }
        content.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_frame_has_the_size_and_is_valid() {
        let made = one_frame(130);
        assert_eq!(made.len(), 130);
        assert!(gimbal_codec::Packet::decode(&made[2..]).is_ok());
    }
}
