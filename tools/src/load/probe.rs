//! A look at the target before a run, so that a wrong address is one clear line and not a pile of failures.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use gimbal_codec::{Command, Decoder, Packet, frame, limits::FRAME_BYTES_MAX_DOWN};

use super::Place;
use crate::websocket::Pipe;

/// How long a gateway may take to accept, and then to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks a gateway for one answer: to a heartbeat before sign-in, which every version refuses with a code. Over QUIC the handshake
/// of the first connection tells as much.
///
/// # Errors
/// Nobody listens, it closes, it is silent, or it speaks another protocol.
pub fn gateway(place: &Place) -> Result<()> {
    if place.quic.is_some() {
        return Ok(());
    }
    ask(place, TIMEOUT).with_context(|| format!("cannot load {}", place.address))
}

fn ask(Place { address, websocket, .. }: &Place, timeout: Duration) -> Result<()> {
    let mut stream = match TcpStream::connect_timeout(address, timeout) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            bail!("nobody listens there; is the server running, and is this its client port?")
        }
        Err(error) => return Err(error).context("it does not accept connections"),
    };
    stream.set_read_timeout(Some(timeout))?;
    let closed =
        "it closed the connection instead of answering: no gimbal gateway, or one that takes no more";
    let (pipe, mut asked) = Pipe::new(&address.to_string(), "/ws", 0);
    let mut pipe = websocket.then_some(pipe);
    let heartbeat = frame(Command::Heartbeat, "probe", 0, &());
    match &mut pipe {
        Some(pipe) => pipe.outgoing(&heartbeat, &mut asked),
        None => asked = heartbeat.to_vec(),
    }
    stream.write_all(&asked).context(closed)?;
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
        let mut frames = chunk[..bytes].to_vec();
        if let Some(pipe) = &mut pipe {
            let mut replies = Vec::new();
            frames.clear();
            pipe.incoming(&chunk[..bytes], &mut frames, &mut replies)?;
            stream.write_all(&replies).context(closed)?;
        }
        let answer = decoder.feed(&frames).next_frame(FRAME_BYTES_MAX_DOWN).map(|body| {
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
        let told = ask(&Place { address, websocket: false, quic: None }, Duration::from_millis(200))
            .expect_err("it is no gateway");
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
        let told = ask(&Place { address: free, websocket: false, quic: None }, TIMEOUT)
            .expect_err("nobody is there");
        assert!(told.to_string().contains("nobody listens"), "{told:#}");
    }
}
