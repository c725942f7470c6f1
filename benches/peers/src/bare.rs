//! The bound beside a fan-out: a process that does nothing but one `send()` per socket.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Context as _, Result, ensure};

use crate::dialect::gimbal::room_frame;

/// Prints its address, takes the asking connection and then `members` more. Each byte from the asker is a number of
/// frames; all of them go to each member in one `send()`, as an ideal server would join them.
///
/// # Errors
/// When a socket fails; the end of the asking connection is a good end.
pub(crate) fn send_loop(members: usize, payload_bytes: usize) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    gimbal::say!("{}", listener.local_addr()?);
    let (mut asker, _) = listener.accept()?;
    let mut sockets = Vec::with_capacity(members);
    for _ in 0..members {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    let frame = room_frame(&vec![b'.'; payload_bytes]);
    let mut frames = [0];
    while asker.read(&mut frames)? == 1 {
        ensure!(frames[0] > 0, "nothing is asked for");
        let bytes = frame.repeat(usize::from(frames[0]));
        sockets.iter_mut().try_for_each(|socket| socket.write_all(&bytes))?;
    }
    Ok(())
}
