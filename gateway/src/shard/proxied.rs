//! Connections that balancers make for their clients: until the PROXY header is read, and whom it named.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gimbal_codec::SessionKey;
use hashbrown::HashMap;

use crate::transport::prefix::Prefix;
use crate::transport::proxy::{self, NoProxyHeader, ProxyHeader};

/// The connections of one shard that balancers have made; others cost nothing here.
#[derive(Debug)]
pub(super) struct Proxied {
    balancers: Arc<[Prefix]>,
    known: HashMap<SessionKey, Progress>,
}

#[derive(Debug)]
enum Progress {
    /// What has come of the header.
    Header(Vec<u8>),
    /// Who it is for.
    Client(SocketAddr),
}

/// What the first bytes of a balancer's connection came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Named {
    /// The header is not complete: nothing of the client has come.
    NotYet,
    /// Of these bytes so many were the header's; the connection is for `client`, or the balancer's own.
    Now {
        /// The client.
        client: Option<SocketAddr>,
        /// Bytes to skip.
        skip: usize,
    },
}

impl Proxied {
    pub(super) fn new(balancers: Arc<[Prefix]>) -> Self {
        Self { balancers, known: HashMap::new() }
    }

    /// Whether connections from there begin with a header.
    pub(super) fn is_balancer(&self, peer: IpAddr) -> bool {
        self.balancers.iter().any(|balancer| balancer.holds(peer))
    }

    /// The connection waits for its header from now on.
    pub(super) fn begin(&mut self, key: SessionKey) {
        self.known.insert(key, Progress::Header(Vec::new()));
    }

    /// Whether there may be balancers at all.
    pub(super) fn is_open(&self) -> bool {
        !self.balancers.is_empty()
    }

    /// Takes what has come; `None`: it is the client's.
    ///
    /// # Errors
    /// [`NoProxyHeader`]: it is something else.
    pub(super) fn take(&mut self, key: SessionKey, bytes: &[u8]) -> Result<Option<Named>, NoProxyHeader> {
        let Some(progress) = self.known.get_mut(&key) else { return Ok(None) };
        let Progress::Header(begun) = progress else { return Ok(None) };
        let before = begun.len();
        begun.extend_from_slice(bytes);
        let Some(ProxyHeader { source, bytes }) = proxy::parse(begun)? else {
            return Ok(Some(Named::NotYet));
        };
        match source {
            Some(client) => *progress = Progress::Client(client),
            None => drop(self.known.remove(&key)),
        }
        Ok(Some(Named::Now { client: source, skip: bytes - before }))
    }

    /// Whom the connection is for, if its balancer has said so.
    pub(super) fn client(&self, key: SessionKey) -> Option<SocketAddr> {
        match self.known.get(&key)? {
            Progress::Client(client) => Some(*client),
            Progress::Header(_) => None,
        }
    }

    /// The connection has ended.
    pub(super) fn end(&mut self, key: SessionKey) {
        if self.is_open() {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use gimbal_codec::ShardId;

    use super::*;

    #[test]
    fn a_header_is_read_in_pieces_and_what_follows_is_the_clients() {
        let mut proxied = Proxied::new(["10.0.0.0/8".parse().unwrap()].into());
        let key = |index| SessionKey::new(ShardId(0), index, 1);
        let is_balancer = |proxied: &Proxied, from: &str| proxied.is_balancer(from.parse().unwrap());
        assert!(!is_balancer(&proxied, "192.0.2.1") && is_balancer(&proxied, "10.1.1.1"));
        assert_eq!(proxied.take(key(1), b"PROXY"), Ok(None), "a stranger's bytes are its own");
        proxied.begin(key(2));
        assert_eq!(proxied.take(key(2), b"PROXY TCP4 192.0.2.7 10.1.1.1"), Ok(Some(Named::NotYet)));
        let client = "192.0.2.7:4711".parse().ok();
        assert_eq!(proxied.take(key(2), b" 4711 443\r\nabc"), Ok(Some(Named::Now { client, skip: 11 })));
        assert_eq!(proxied.take(key(2), b"PROXY"), Ok(None));
        assert_eq!(proxied.client(key(2)), client);
        proxied.begin(key(3));
        assert_eq!(proxied.take(key(3), b"GET / HTTP/1.1\r\n"), Err(NoProxyHeader));
        proxied.begin(key(4));
        let unknown = proxied.take(key(4), b"PROXY UNKNOWN\r\n");
        assert_eq!(unknown, Ok(Some(Named::Now { client: None, skip: 15 })));
        (1..5).for_each(|index| proxied.end(key(index)));
        assert!(proxied.known.is_empty());
    }
}
