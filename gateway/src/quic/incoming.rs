//! Handshakes: who may begin one, and who is to show first that its address is its own.

use quinn_proto::Incoming;

use super::{Drop, HANDSHAKES_PER_ENTER, Quic, Total};

impl Quic {
    /// Sends away, at little cost, whom there is no room for; the others wait their turn.
    pub(super) fn sort_out(&mut self, begun: impl IntoIterator<Item = Incoming>) {
        let mut answer = Vec::new();
        for incoming in begun {
            let handshaking = self.handshaking();
            let is_known = incoming.remote_address_validated();
            answer.clear();
            if !self.is_open || self.links.count() + self.waiting.len() >= self.bounds.connections_max {
                self.dropped(if self.is_open { Drop::OverLimit } else { Drop::QuicRefused });
                let transmit = self.endpoint.refuse(incoming, &mut answer);
                self.udp.send(transmit, &answer);
            } else if handshaking >= self.bounds.handshakes_max {
                self.dropped(Drop::QuicHandshakeOverLimit);
                self.endpoint.ignore(incoming);
            } else if handshaking >= self.bounds.retry_from && !is_known {
                self.metrics.add(Total::QuicRetries, 1);
                if let Ok(transmit) = self.endpoint.retry(incoming, &mut answer) {
                    self.udp.send(transmit, &answer);
                }
            } else {
                self.waiting.push_back(incoming);
            }
        }
    }

    /// Begins handshakes, as many as there is time for.
    pub(super) fn begin_handshakes(&mut self) {
        let mut answer = Vec::new();
        for _ in 0..HANDSHAKES_PER_ENTER {
            let Some(incoming) = self.waiting.pop_front() else { return };
            answer.clear();
            match self.endpoint.accept(incoming, self.now, &mut answer, None) {
                Ok((handle, conn)) => {
                    let socket = self.links.insert(handle, conn);
                    let serial = self.links.get(socket).map_or(0, |link| link.serial);
                    self.handshakes.push_back((self.now + self.bounds.handshake, socket, serial));
                    self.drive(socket);
                    self.touch(socket);
                }
                Err(error) => {
                    self.dropped(Drop::QuicHandshakeFailed);
                    if let Some(transmit) = error.response {
                        self.udp.send(transmit, &answer);
                    }
                }
            }
        }
    }
}
