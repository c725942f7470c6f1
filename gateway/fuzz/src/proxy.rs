//! What a balancer's header must hold to, and the text of address ranges. Included by the gateway's tests, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{NoProxyHeader, ProxyHeader, parse};
use crate::transport::prefix::{Prefix, Source};

/// Every header is whole within so many bytes.
const HEADER_BYTES_MAX: usize = 1040;

/// Splits that are tried: all of a short header, and the ends of a long one.
fn splits(length: usize) -> impl Iterator<Item = usize> {
    (0..=length).filter(move |&end| end <= 120 || end + 20 >= length || end % 97 == 0)
}

/// A header is decided once and for all: what is known of a part is true of the whole. It is found within its bound, and
/// says what a balancer would have to write for it to be read so.
pub(super) fn check_proxy(data: &[u8]) {
    let mut known = None;
    for end in splits(data.len()) {
        let said = parse(&data[..end]);
        match known {
            Some(known) => assert_eq!(said, known, "at {end}"),
            None if said == Ok(None) => assert!(end < HEADER_BYTES_MAX, "undecided at {end}"),
            None => known = Some(said),
        }
    }
    if let Ok(Some(ProxyHeader { source, bytes })) = parse(data) {
        assert!((15..=HEADER_BYTES_MAX).contains(&bytes) && bytes <= data.len());
        if let Some(source) = source {
            for header in [as_text(source), as_binary(source)] {
                let expected = ProxyHeader { source: Some(source), bytes: header.len() };
                assert_eq!(parse(&header), Ok(Some(expected)));
                assert_eq!(parse(&[&header[..], data].concat()), Ok(Some(expected)));
            }
        }
    }
    assert_eq!(parse(&[b"x", data].concat()), Err(NoProxyHeader));
}

fn as_text(source: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    // The destination is of the same family; which one it is does not matter.
    format!("PROXY {family} {0} {0} {1} 443\r\n", source.ip(), source.port()).into_bytes()
}

fn as_binary(source: SocketAddr) -> Vec<u8> {
    let (family, address) = match source.ip() {
        IpAddr::V4(address) => (0x11, address.octets().to_vec()),
        IpAddr::V6(address) => (0x21, address.octets().to_vec()),
    };
    let rest = [&address[..], &address, &source.port().to_be_bytes(), &[1, 187]].concat();
    let length = u16::try_from(rest.len()).expect("two addresses are short");
    [&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], &[family], &length.to_be_bytes(), &rest].concat()
}

/// A range survives its text, and holds just those addresses whose first bits are its own. The first 16 bytes are an
/// address, the rest a text.
pub(super) fn check_prefix(data: &[u8]) {
    let Some((octets, text)) = data.split_first_chunk::<16>() else { return };
    let (v6, v4) = (Ipv6Addr::from(*octets), Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]));
    for address in [IpAddr::V6(v6), IpAddr::V4(v4)] {
        check_source(address);
        let made = format!("{address}/{}", octets[15] % 32);
        for text in std::str::from_utf8(text).into_iter().chain([made.as_str()]) {
            let Ok(prefix) = text.parse::<Prefix>() else {
                assert_ne!(text, made);
                continue;
            };
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
            assert_eq!(prefix.holds(address), holds(text, address), "{text} and {address}");
        }
    }
}

/// As [`Prefix::holds`], bit by bit and from the text.
fn holds(prefix: &str, address: IpAddr) -> bool {
    let (range, bits) = prefix.split_once('/').unwrap_or((prefix, "128"));
    let range = range.parse::<IpAddr>().expect("it was read as one");
    let count = bits.parse::<usize>().expect("it was read as one");
    let (range, count) = match range.to_canonical() {
        short if range.is_ipv6() && short.is_ipv4() && count >= 96 => (short, count - 96),
        _ => (range, count),
    };
    let address = address.to_canonical();
    let [range_bits, address_bits] = [range, address].map(|ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    });
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let count = count.min(8 * range_bits.len());
    range_bits.len() == address_bits.len()
        && (0..count).all(|at| bit(&range_bits, at) == bit(&address_bits, at))
}

/// All addresses of a host are one source, and all sources of a range one range, which is its own.
fn check_source(address: IpAddr) {
    let source = Source::of(address);
    assert_eq!(source.range().range(), source.range());
    let other = match address.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) ^ 1)),
    };
    assert_eq!(Source::of(other), source);
}

/// Either: a first byte of 0 is followed by what [`check_prefix`] takes.
pub(super) fn check_either(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => check_prefix(rest),
        _ => check_proxy(data),
    }
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn proxy(data: &[u8]) {
    check_either(data);
}
