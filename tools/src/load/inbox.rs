//! What clients of durable messages do: take them in order, sync when they are behind, and keep the ledger.

use gimbal_codec::{
    Command, DecodeError, Packet, Seq,
    body::{Message, Reply, Sync, SyncPage},
    code, frame,
    limits::SYNC_LIMIT_MAX,
};

use crate::{
    ledger::{Mark, Received, Sent, verify},
    report::{Counts, Latency, Report},
};

/// One mailbox that exactly one sender feeds.
#[derive(Default)]
pub struct Inbox {
    /// What its connections were given.
    pub received: Received,
    /// Who feeds it, as in every mark.
    pub sender: u32,
}

/// What is counted over all inboxes of a run.
#[derive(Default)]
pub struct Tally {
    /// This run, as in every mark.
    pub run: u64,
    /// Everything counted.
    pub counts: Counts,
    /// From when a message should have been sent to its delivery, for those of the measured time.
    pub deliveries: Latency,
    /// Deliveries of the measured time.
    pub delivered_measured: u64,
    /// The first faults in words.
    pub faults: Vec<String>,
    /// Now.
    pub now_ns: u64,
    /// Deliveries are measured.
    pub is_measuring: bool,
    /// Found in the mailboxes at the end.
    pub stored: u64,
}

impl Tally {
    /// Puts a fault in words, the first ones only.
    pub fn fault(&mut self, words: String) {
        Report::fault(&mut self.faults, words);
    }

    /// Enters the ledger's judgement of one mailbox as it was read at the end.
    pub fn judge(&mut self, index: usize, sent: &Sent, inbox: &Inbox, mailbox: &[(u64, Option<Mark>)]) {
        self.stored += mailbox.len() as u64;
        for fault in verify(self.run, inbox.sender, sent, &inbox.received, mailbox) {
            self.counts.enter(&fault);
            self.fault(format!("mailbox {index}: {fault}"));
        }
    }
}

impl Inbox {
    /// Takes a packet if it is about stored messages, and asks for more in `out`; `false` if it is about something else.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn handle(
        &mut self,
        packet: &Packet<'_>,
        out: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let bad = |error: DecodeError| error.to_string();
        match Command::try_from(packet.command) {
            Ok(Command::Message) => {
                let message = Message::decode(packet.content).map_err(bad)?;
                if message.seq == Seq::new(0) {
                    return Ok(false);
                }
                self.take(&message, tally);
            }
            Ok(Command::Behind) => {
                tally.counts.behind += 1;
                self.ask(out);
            }
            Ok(Command::Sync) => {
                let reply = Reply::decode(packet.content).map_err(bad)?;
                match reply.code {
                    code::OK => self.take_page(&SyncPage::decode(reply.data).map_err(bad)?, tally),
                    code::SYNC_IN_PROGRESS => {}
                    code::BUSY => {
                        tally.counts.shed += 1;
                        self.ask(out);
                    }
                    other => return Err(format!("sync refused: {} ({other})", reply.message)),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_page(&mut self, page: &SyncPage<'_>, tally: &mut Tally) {
        tally.counts.pages += 1;
        let cursor = self.received.cursor();
        // What was given live before the page was read may stand in it again; only the page may repeat.
        for message in page.messages.iter().filter(|message| message.seq.get() > cursor) {
            self.take(message, tally);
        }
    }

    fn take(&mut self, message: &Message<'_>, tally: &mut Tally) {
        let mark = Mark::read(message.content);
        if !self.received.enter(message.seq.get(), mark, tally.run, self.sender) {
            return; // the ledger has it
        }
        tally.counts.delivered += 1;
        if let Some(mark) = mark.filter(|_| tally.is_measuring) {
            tally.delivered_measured += 1;
            tally.deliveries.record(tally.now_ns.saturating_sub(mark.intended_ns));
        }
    }

    fn ask(&self, out: &mut Vec<u8>) {
        let after = Seq::new(self.received.cursor());
        out.extend_from_slice(&frame(Command::Sync, "", 0, &Sync { after, limit: SYNC_LIMIT_MAX }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gimbal_codec::body::Behind;

    const RUN: u64 = 5;

    fn content(number: u32) -> Vec<u8> {
        let mut out = Vec::new();
        Mark { run: RUN, sender: 2, number, intended_ns: 10 }.write(30, &mut out);
        out
    }

    fn give(inbox: &mut Inbox, tally: &mut Tally, command: Command, body: &[u8]) -> (bool, Vec<u8>) {
        let packet = Packet { command: command.number(), content: body, ..Packet::default() };
        let mut out = Vec::new();
        let ours = inbox.handle(&packet, &mut out, tally).expect("it is valid");
        (ours, out)
    }

    /// The content of a packet with this body.
    fn encoded<B: gimbal_codec::Body>(body: &B) -> Vec<u8> {
        let made = frame(Command::Message, "", 0, body);
        let mut decoder = gimbal_codec::Decoder::new();
        let mut feed = decoder.feed(&made);
        let body = feed.next_frame(1 << 20).expect("whole").expect("whole");
        Packet::decode(body).expect("ours").content.to_vec()
    }

    #[test]
    fn messages_are_taken_once_and_measured_when_measuring() {
        let (mut inbox, mut tally) =
            (Inbox { sender: 2, ..Inbox::default() }, Tally { run: RUN, ..Tally::default() });
        for (seq, number) in [(1, 0), (2, 1), (2, 1)] {
            let content = content(number);
            let message = Message { seq: Seq::new(seq), content: &content, ..Message::default() };
            tally.is_measuring = seq == 2;
            assert!(give(&mut inbox, &mut tally, Command::Message, &encoded(&message)).0);
        }
        assert_eq!((tally.counts.delivered, tally.delivered_measured, inbox.received.cursor()), (2, 1, 2));
    }

    #[test]
    fn behind_asks_for_what_is_missing_and_others_are_left_alone() {
        let (mut inbox, mut tally) = (Inbox::default(), Tally::default());
        let behind = encoded(&Behind { latest: Seq::new(9) });
        let (ours, out) = give(&mut inbox, &mut tally, Command::Behind, &behind);
        assert!(ours && !out.is_empty() && tally.counts.behind == 1);
        let room = encoded(&Message { room: gimbal_codec::RoomId::new(1), ..Message::default() });
        assert!(!give(&mut inbox, &mut tally, Command::Message, &room).0);
    }
}
