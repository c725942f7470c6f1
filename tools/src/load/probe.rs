//! A look at the target before a run, so that a wrong address is one clear line and not a pile of failures.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use gimbal_codec::{Command, Decoder, Packet, frame, limits::FRAME_BYTES_MAX_DOWN};

/// How long a gateway may take to accept, and then to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks a gateway for one answer: to a heartbeat before sign-in, which every version refuses with a code.
///
/// # Errors
/// Nobody listens, it closes, it is silent, or it speaks another protocol.
pub fn gateway(address: SocketAddr) -> Result<()> {
    ask(address, TIMEOUT).with_context(|| format!("cannot load {address}"))
}

fn ask(address: SocketAddr, timeout: Duration) -> Result<()> {
    let mut stream = match TcpStream::connect_timeout(&address, timeout) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            bail!("nobody listens there; is the server running, and is this its TCP port?")
        }
        Err(error) => return Err(error).context("it does not accept connections"),
    };
    stream.set_read_timeout(Some(timeout))?;
    let closed =
        "it closed the connection instead of answering: no gimbal gateway, or one that takes no more";
    stream.write_all(&frame(Command::Heartbeat, "probe", 0, &())).context(closed)?;
    let (mut decoder, mut chunk, mut got) = (Decoder::new(), [0; 512], Vec::new());
    loop {
        let bytes = match stream.read(&mut chunk) {
            Ok(bytes) if bytes > 0 => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            _ if !got.is_empty() => bail!(other_protocol(&got)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!(
                    "it accepts connections and is silent for {timeout:?}: no gimbal gateway, or one that hangs"
                )
            }
            Ok(_) | Err(_) => bail!(closed),
        };
        got.extend_from_slice(&chunk[..bytes]);
        let answer = decoder.feed(&chunk[..bytes]).next_frame(FRAME_BYTES_MAX_DOWN).map(|body| {
            body.map(|body| Packet::decode(body).is_ok_and(|packet| packet.request_id == "probe"))
        });
        match answer {
            Ok(Some(true)) => return Ok(()),
            Ok(None) if got.len() <= FRAME_BYTES_MAX_DOWN => {}
            Ok(_) | Err(_) => bail!(other_protocol(&got)),
        }
    }
}

fn other_protocol(got: &[u8]) -> String {
    let text = String::from_utf8_lossy(&got[..got.len().min(40)]).into_owned();
    format!("it speaks another protocol; it answers {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, thread};

    /// Asks a listener that treats one connection with `treat`.
    fn told(treat: impl FnOnce(TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let thread = thread::spawn(move || treat(listener.accept().expect("we connect").0));
        let told = ask(address, Duration::from_millis(200)).expect_err("it is no gateway");
        thread.join().expect("it only writes");
        format!("{told:#}")
    }

    #[test]
    fn what_is_no_gateway_is_told_apart() {
        let http = |mut stream: TcpStream| {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        };
        let expect = |told: String, what: &str| assert!(told.contains(what), "{what}: {told}");
        expect(told(http), "another protocol");
        let silent = |mut stream: TcpStream| while stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {};
        expect(told(silent), "silent");
        expect(told(drop), "closed");
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let told = ask(free, TIMEOUT).expect_err("nobody is there");
        assert!(told.to_string().contains("nobody listens"), "{told:#}");
    }
}
