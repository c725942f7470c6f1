//! Plain HTTP/1.1 GET, enough for the health and metrics pages.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use super::PATIENCE;

/// Status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no status line"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// One sample of the metrics page: `name{label="value",..} number`.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: String,
    pub(crate) value: f64,
}

/// The metrics page, parsed.
pub(crate) fn metrics(address: SocketAddr) -> Vec<Sample> {
    let (status, body) = get(address, "/metrics").unwrap();
    assert_eq!(status, 200);
    body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect()
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
    Sample { name: name.to_owned(), labels: labels.to_owned(), value }
}

/// Sum over all series with this label value.
pub(crate) fn labelled(address: SocketAddr, value: &str) -> f64 {
    let quoted = format!("\"{value}\"");
    metrics(address).iter().filter(|sample| sample.labels.contains(&quoted)).map(|sample| sample.value).sum()
}

/// The series with this name and no labels; 0 when there is none.
pub(crate) fn value(address: SocketAddr, name: &str) -> f64 {
    metrics(address).iter().find(|sample| sample.name == name).map_or(0.0, |sample| sample.value)
}
