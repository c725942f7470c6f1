//! Local addresses of the client's sockets: each has its own range of ports, so many allow more connections.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

/// Most addresses of one run: far more ports than anything here has descriptors for.
const ADDRESSES_MAX: usize = 4_096;

/// Reads a list of addresses and networks: `127.0.0.2,127.0.1.0/24`. First and last address of a network are left out.
///
/// # Errors
/// When a part is neither, or there are more than 4,096.
pub fn parse(text: &str) -> Result<Vec<Ipv4Addr>> {
    let mut addresses = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        let wrong = || format!("{part:?} is neither an IPv4 address nor a network such as 127.0.0.0/24");
        let Some((network, bits)) = part.split_once('/') else {
            addresses.push(part.parse().with_context(wrong)?);
            continue;
        };
        let network: Ipv4Addr = network.parse().with_context(wrong)?;
        let bits: u32 = bits.parse().with_context(wrong)?;
        ensure!((20..=30).contains(&bits), "{part}: a network has 20 to 30 bits");
        let size = 1u32 << (32 - bits);
        let first = network.to_bits() & !(size - 1);
        addresses.extend((first + 1..first + size - 1).map(Ipv4Addr::from_bits));
    }
    ensure!(addresses.len() <= ADDRESSES_MAX, "at most {ADDRESSES_MAX} source addresses");
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_read() {
        let read = parse("127.0.0.9, 127.0.1.5/30").expect("a list");
        assert_eq!(
            read,
            ["127.0.0.9", "127.0.1.5", "127.0.1.6"].map(|text| text.parse::<Ipv4Addr>().expect("an address"))
        );
        assert_eq!(parse("127.0.0.0/24").expect("a network").len(), 254);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in
            ["", "localhost", "127.0.0.0/8", "127.0.0.0/x", "::1", "127.0.0.1,", "10.0.0.0/20,10.1.0.0/20"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
