//! Ranges of addresses, as `10.0.0.0/8` or `2001:db8::/32`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and how many of its first bits count. A bare address is itself alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// Of `::ffff:0:0/96`, the range of IPv4 addresses in IPv6's form.
const MAPPED_BITS: u8 = 96;

/// Not `address/bits`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is not an address with the number of its bits that count, as 10.0.0.0/8")]
pub struct NoPrefix;

impl Prefix {
    /// This machine, over IPv4.
    pub const LOOPBACK_V4: Self = Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 };
    /// This machine, over IPv6.
    pub const LOOPBACK_V6: Self = Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 };

    /// Whether `address` is in the range; an IPv4 address in IPv6's form is the IPv4 address.
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address.is_ipv4() != self.address.is_ipv4() {
            return false;
        }
        let all = if address.is_ipv4() { 32 } else { 128 };
        let (one, other) = (number(address), number(self.address));
        // A shift by all bits leaves nothing to compare.
        let differ = (one ^ other).checked_shr(u32::from(all - self.bits)).unwrap_or(0);
        differ == 0
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NoPrefix)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), |bits| bits.parse().map_err(|_| NoPrefix))?;
        if bits > all {
            return Err(NoPrefix);
        }
        // Addresses are compared in their own form, so a range in IPv6's form of IPv4 would hold nobody.
        match address.to_canonical() {
            short if short.is_ipv4() && bits >= MAPPED_BITS && all > 32 => {
                Ok(Self { address: short, bits: bits - MAPPED_BITS })
            }
            _ => Ok(Self { address, bits }),
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = NoPrefix;

    fn try_from(text: String) -> Result<Self, NoPrefix> {
        text.parse()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// What counts as one host, and the range around it: an IPv4 address and its /24; of IPv6 a /64, all of which one host has,
/// and its /48. Both fit 64 bits: IPv4 as the mapped range, which no host of IPv6 is in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Source(u64);

const MAPPED: u64 = 0xffff_0000_0000;

impl Source {
    /// Of a peer.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(MAPPED | u64::from(u32::from(address))),
            IpAddr::V6(address) => Self((u128::from(address) >> 64) as u64),
        }
    }

    /// The range around it; no host has the same number.
    pub(crate) fn range(self) -> Self {
        if self.0 >> 32 == MAPPED >> 32 { Self(self.0 & !0xff) } else { Self(self.0 & !0xffff) }
    }

    /// A number that spreads sources evenly.
    pub(crate) fn spread(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_holds_what_shares_its_bits() {
        for (prefix, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("192.0.2.128/25", "::ffff:192.0.2.200", "192.0.2.127"),
            ("::ffff:10.0.0.0/104", "10.255.0.1", "11.0.0.0"),
            ("::ffff:10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("0.0.0.0/0", "255.0.0.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let prefix: Prefix = prefix.parse().unwrap();
            assert!(prefix.holds(ip(inside)) && !prefix.holds(ip(outside)), "{prefix}");
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "x/8", "10.0.0.0/8/8"] {
            assert_eq!(wrong.parse::<Prefix>(), Err(NoPrefix), "{wrong}");
        }
    }

    #[test]
    fn a_source_is_a_host_in_its_range() {
        let of = |text| Source::of(ip(text));
        assert_eq!(of("192.0.2.7").range(), of("192.0.2.200").range());
        assert_ne!(of("192.0.2.7").range(), of("192.0.3.7").range());
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::4"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_eq!(of("2001:db8:1:2::3").range(), of("2001:db8:1:ffff::").range());
        assert_ne!(of("2001:db8:1::").range(), of("2001:db8:2::").range());
    }
}
