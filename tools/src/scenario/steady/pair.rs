//! The two ends of every conversation: what is written to the sockets and what comes from them.

use gimbal_codec::{
    ClientMessageId, Command, Packet, Seq, UserId,
    body::{Behind, Message, Reply, Send, SendResult, Sync, SyncPage},
    code, frame,
    limits::SYNC_LIMIT_MAX,
};

use super::Meters;
use crate::{
    ledger::{Mark, Outcome, Received, Sent},
    load::sockets::Event,
    report::Report,
};

/// One connection: it sends to its partner and is sent to by it.
pub(in crate::scenario) struct Peer {
    /// Whom it sends to.
    pub(in crate::scenario) to: UserId,
    /// Its own index, and in every mark.
    pub(in crate::scenario) index: usize,
    /// What it sent.
    pub(in crate::scenario) sent: Sent,
    /// When each of its messages should have been sent.
    intended_ns: Vec<u64>,
    /// What it was given.
    pub(in crate::scenario) received: Received,
    /// It is over.
    pub(in crate::scenario) closed: bool,
    /// The last frame answered a send.
    pub(in crate::scenario) was_answered: bool,
}

impl Peer {
    pub(in crate::scenario) fn new(to: UserId, index: usize) -> Self {
        let (sent, received) = (Sent::default(), Received::default());
        Self { to, index, sent, intended_ns: Vec::new(), received, closed: false, was_answered: false }
    }
}

/// All connections, by index; `index ^ 1` is the partner.
pub(in crate::scenario) struct Fleet {
    /// Of this run, in every mark.
    pub(in crate::scenario) run: u64,
    pub(in crate::scenario) bytes: usize,
    pub(in crate::scenario) peers: Vec<Peer>,
}

impl Fleet {
    /// Appends the next message of a connection to its output.
    pub(in crate::scenario) fn send(&mut self, index: usize, intended_ns: u64, out: &mut Vec<u8>) {
        let peer = &mut self.peers[index];
        let number = peer.sent.enter();
        peer.intended_ns.push(intended_ns);
        let mut content = Vec::with_capacity(self.bytes);
        Mark { run: self.run, sender: index as u32, number, intended_ns }.write(self.bytes, &mut content);
        let client_message_id = ClientMessageId::new(u64::from(number) + 1);
        let send = Send { client_message_id, to: peer.to, command: 1, content: &content, ..Send::default() };
        // Packet.seq is echoed and tells which message an answer is for.
        out.extend_from_slice(&frame(Command::Send, "", u64::from(number), &send));
    }

    /// Everything is answered and everything acknowledged was given to its recipient.
    pub(in crate::scenario) fn is_complete(&self) -> bool {
        self.peers.iter().all(|peer| {
            let partner = &self.peers[peer.index ^ 1];
            peer.sent.open() == 0 && (partner.closed || partner.received.cursor() >= peer.sent.acked() as u64)
        })
    }

    /// Takes one event of a connection; what it answers goes to `out`.
    pub(in crate::scenario) fn handle(
        &mut self,
        index: usize,
        event: Event<'_>,
        out: &mut Vec<u8>,
        meters: &mut Meters,
    ) {
        self.peers[index].was_answered = false;
        match event {
            Event::Closed(why) => {
                self.peers[index].closed = true;
                meters.counts.closed += 1;
                meters.fault(format!("connection {index} ended: {why}"));
            }
            Event::Frame(packet) => {
                if let Err(why) = self.handle_packet(index, packet, out, meters) {
                    meters.counts.unexpected += 1;
                    meters.fault(format!("connection {index}: {why}"));
                }
            }
        }
    }

    fn handle_packet(
        &mut self,
        index: usize,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        meters: &mut Meters,
    ) -> Result<(), String> {
        let command = Command::try_from(packet.command).map_err(|error| error.to_string())?;
        let bad = |error: gimbal_codec::DecodeError| error.to_string();
        match command {
            Command::Send => {
                self.take_answer(index, packet.seq, &Reply::decode(packet.content).map_err(bad)?, meters)
            }
            Command::Message => {
                self.take_message(index, &Message::decode(packet.content).map_err(bad)?, meters)
            }
            Command::Sync => self.take_page(index, &Reply::decode(packet.content).map_err(bad)?, out, meters),
            Command::Behind => {
                Behind::decode(packet.content).map_err(bad)?;
                meters.counts.behind += 1;
                self.ask(index, out);
                Ok(())
            }
            Command::Heartbeat => Ok(()),
            other => Err(format!("unexpected {other:?}")),
        }
    }

    fn take_answer(
        &mut self,
        index: usize,
        number: u64,
        reply: &Reply<'_>,
        meters: &mut Meters,
    ) -> Result<(), String> {
        let peer = &mut self.peers[index];
        let number = u32::try_from(number).map_err(|_| "an answer to nothing")?;
        let intended_ns = *peer.intended_ns.get(number as usize).ok_or("an answer to nothing")?;
        peer.was_answered = true;
        if reply.code != code::OK {
            peer.sent.answer(number, Outcome::Refused);
            match reply.code {
                code::BUSY => meters.counts.shed += 1,
                _ => {
                    meters.counts.refused += 1;
                    meters.fault(format!(
                        "connection {index}: send refused: {} ({})",
                        reply.message, reply.code
                    ));
                }
            }
            return Ok(());
        }
        let result = SendResult::decode(reply.data).map_err(|error| error.to_string())?;
        peer.sent.answer(number, Outcome::Acked(result.seq.get()));
        meters.counts.acked += 1;
        if meters.measures(intended_ns) {
            meters.acked_measured += 1;
            meters.round_acks.record(meters.now_ns.saturating_sub(intended_ns));
        }
        Ok(())
    }

    fn take_message(
        &mut self,
        index: usize,
        message: &Message<'_>,
        meters: &mut Meters,
    ) -> Result<(), String> {
        let mark = Mark::read(message.content);
        let partner = (index ^ 1) as u32;
        if !self.peers[index].received.enter(message.seq.get(), mark, self.run, partner) {
            return Ok(()); // the ledger has it
        }
        meters.counts.delivered += 1;
        if let Some(mark) = mark.filter(|mark| meters.measures(mark.intended_ns)) {
            meters.delivered_measured += 1;
            meters.deliveries.record(meters.now_ns.saturating_sub(mark.intended_ns));
        }
        Ok(())
    }

    fn take_page(
        &mut self,
        index: usize,
        reply: &Reply<'_>,
        out: &mut Vec<u8>,
        meters: &mut Meters,
    ) -> Result<(), String> {
        match reply.code {
            code::OK => {}
            code::SYNC_IN_PROGRESS => return Ok(()),
            code::BUSY => {
                meters.counts.shed += 1;
                self.ask(index, out);
                return Ok(());
            }
            other => return Err(format!("sync refused: {} ({other})", reply.message)),
        }
        meters.counts.pages += 1;
        let page = SyncPage::decode(reply.data).map_err(|error| error.to_string())?;
        let cursor = self.peers[index].received.cursor();
        // What was given live before the page was read may stand in it again; only the page may repeat.
        for message in page.messages.iter().filter(|message| message.seq.get() > cursor) {
            self.take_message(index, message, meters)?;
        }
        Ok(())
    }

    fn ask(&self, index: usize, out: &mut Vec<u8>) {
        let after = Seq::new(self.peers[index].received.cursor());
        out.extend_from_slice(&frame(Command::Sync, "", 0, &Sync { after, limit: SYNC_LIMIT_MAX }));
    }
}

impl Meters {
    /// Puts a fault in words, the first ones only.
    pub(in crate::scenario) fn fault(&mut self, words: String) {
        Report::fault(&mut self.faults, words);
    }
}
