//! The PROXY protocol, version 1 (text) and 2 (binary): what a balancer says of the client it speaks for (haproxy,
//! `proxy-protocol.txt`, sections 2.1 and 2.2). Bytes in, values out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// First bytes of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length 2.
const HEAD_BYTES: usize = 16;
/// After the head, addresses and what may follow them. Balancers send some hundred bytes at most.
const REST_BYTES_MAX: usize = 1024;
/// First bytes of version 1.
const PREFIX: &[u8] = b"PROXY ";
/// Longest line of version 1, its end included (section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// A header that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProxyHeader {
    /// The client. `None`: the balancer speaks for itself, or cannot say.
    pub(crate) source: Option<SocketAddr>,
    /// Bytes of the header; the client's own follow.
    pub(crate) bytes: usize,
}

/// Not a header, or one that is too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoProxyHeader;

/// Reads the header at the start of a connection; `None`: it is not complete. A header is whole within 1,040 bytes.
///
/// # Errors
/// [`NoProxyHeader`], as soon as it is known.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    if begins(bytes, &SIGNATURE) {
        return parse_binary(bytes);
    }
    if begins(bytes, PREFIX) {
        return parse_text(bytes);
    }
    Err(NoProxyHeader)
}

/// Whether `bytes` begin as `with` does, as far as both go.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(byte, with)| byte == with)
}

fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
    let is_for_another = match head[12] {
        0x20 => false,
        0x21 => true,
        _ => return Err(NoProxyHeader),
    };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > REST_BYTES_MAX {
        return Err(NoProxyHeader);
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let source = match head[13] {
        _ if !is_for_another => None,
        0x11 => Some(source_v4(rest).ok_or(NoProxyHeader)?),
        0x21 => Some(source_v6(rest).ok_or(NoProxyHeader)?),
        // A family without addresses of the internet.
        _ => None,
    };
    Ok(Some(ProxyHeader { source, bytes: HEAD_BYTES + length }))
}

/// Source 4, destination 4, source port 2, destination port 2.
fn source_v4(rest: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    let port: [u8; 2] = rest.get(8..12)?.get(..2)?.try_into().ok()?;
    Some((Ipv4Addr::from(address), u16::from_be_bytes(port)).into())
}

/// Source 16, destination 16, source port 2, destination port 2.
fn source_v6(rest: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 16] = rest.get(..16)?.try_into().ok()?;
    let port: [u8; 2] = rest.get(32..36)?.get(..2)?.try_into().ok()?;
    Some((Ipv6Addr::from(address), u16::from_be_bytes(port)).into())
}

fn parse_text(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let seen = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return if seen.len() == LINE_BYTES_MAX { Err(NoProxyHeader) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&seen[PREFIX.len()..end]).map_err(|_| NoProxyHeader)?;
    let source = parse_line(line).ok_or(NoProxyHeader)?;
    Ok(Some(ProxyHeader { source, bytes: end + 2 }))
}

/// What stands between "PROXY " and the end of the line. The outer `None`: malformed.
fn parse_line(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination): (IpAddr, IpAddr) = match family {
        "TCP4" => {
            (words.next()?.parse::<Ipv4Addr>().ok()?.into(), words.next()?.parse::<Ipv4Addr>().ok()?.into())
        }
        "TCP6" => {
            (words.next()?.parse::<Ipv6Addr>().ok()?.into(), words.next()?.parse::<Ipv6Addr>().ok()?.into())
        }
        _ => return None,
    };
    let port: u16 = words.next()?.parse().ok()?;
    let _: (IpAddr, u16) = (destination, words.next()?.parse().ok()?);
    words.next().is_none().then_some(Some(SocketAddr::new(source, port)))
}

#[cfg(test)]
#[path = "../../fuzz/src/proxy.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// As a balancer writes it.
    fn written(source: SocketAddr, is_text: bool, more: &[u8]) -> Vec<u8> {
        if is_text {
            let (family, other) =
                if source.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
            return format!("PROXY {family} {} {other} {} 443\r\n", source.ip(), source.port()).into_bytes();
        }
        let port = source.port().to_be_bytes();
        let (family, mut rest) = match source.ip() {
            IpAddr::V4(address) => (0x11, [address.octets(), [192, 0, 2, 1]].concat()),
            IpAddr::V6(address) => (0x21, [address.octets(), [7; 16]].concat()),
        };
        rest.extend(port);
        rest.extend([1, 187]);
        rest.extend(more);
        binary(0x21, family, &rest)
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let line = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        let source = Some("255.255.255.255:65535".parse().unwrap());
        assert_eq!(parse(line), Ok(Some(ProxyHeader { source, bytes: line.len() })));
        let longest = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(parse(longest), Ok(Some(ProxyHeader { source: None, bytes: longest.len() })));
        assert_eq!(parse(b"PROXY UNKNOWN\r\nGET"), Ok(Some(ProxyHeader { source: None, bytes: 15 })));
        let local = binary(0x20, 0, &[]);
        assert_eq!(parse(&local), Ok(Some(ProxyHeader { source: None, bytes: 16 })));
        let unix = binary(0x21, 0x31, &[0; 216]);
        assert_eq!(parse(&unix), Ok(Some(ProxyHeader { source: None, bytes: 232 })));
    }

    #[test]
    fn the_corpus_of_the_fuzz_target_passes() {
        crate::replay::replay("fuzz/corpus/proxy", rules::check_either);
    }

    #[test]
    fn what_is_no_header_is_known_as_soon_as_it_differs() {
        for wrong in [
            &b"G"[..],
            b"PROXX",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \xff\r\n",
            &[b"PROXY ".as_slice(), &[b'x'; 101]].concat(),
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x22, 0x11, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x21, 0x11, &[0; REST_BYTES_MAX + 1])[..HEAD_BYTES],
        ] {
            assert_eq!(parse(wrong), Err(NoProxyHeader), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_balancer_writes_is_read_at_any_split(
            ip in any::<IpAddr>(), port: u16, is_text: bool,
            more in prop::collection::vec(any::<u8>(), 0..64), after in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let source = SocketAddr::new(ip, port);
            let mut bytes = written(source, is_text, &more);
            let length = bytes.len();
            for end in 0..length {
                prop_assert_eq!(parse(&bytes[..end]), Ok(None), "{} of {}", end, length);
            }
            bytes.extend(after);
            prop_assert_eq!(parse(&bytes), Ok(Some(ProxyHeader { source: Some(source), bytes: length })));
        }

        #[test]
        fn whatever_comes_is_decided_within_a_bound(
            start in prop::sample::select(vec![b"PROXY ".to_vec(), SIGNATURE.to_vec(), binary(0x21, 0x11, &[])]),
            rest in prop::collection::vec(any::<u8>(), 0..2048),
        ) {
            let bytes = [start, rest].concat();
            match parse(&bytes) {
                Ok(Some(header)) => prop_assert!(header.bytes <= bytes.len()),
                Ok(None) => prop_assert!(bytes.len() < HEAD_BYTES + REST_BYTES_MAX),
                Err(NoProxyHeader) => {}
            }
        }
    }
}
