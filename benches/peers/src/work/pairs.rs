//! One-to-one: each of 100 senders has a window of messages on the way to a receiver of its own.

use anyhow::{Result, ensure};
use gimbal::clock;

use super::{Done, Machine, Meter, PAYLOAD_BYTES, Parameters, Values};
use crate::{
    conns::{ANSWER_TIMEOUT, TURN},
    dialect::Event,
    server::Peer,
    side::Side,
};

const PAIRS: usize = 100;

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer) -> Result<Done> {
    let mut side = Side::start(machine, peer, false, 2 * PAIRS)?;
    side.open(2 * PAIRS)?;
    side.listen_from(PAIRS)?;
    let payload = [b'.'; PAYLOAD_BYTES];
    let messages =
        (0..PAIRS).map(|pair| side.message_to(PAIRS + pair, &payload)).collect::<Result<Vec<_>>>()?;
    let mut load = Load { side, messages, sent: vec![0; PAIRS], due: Vec::new() };
    let mut done = Done::new();
    for &window in &parameters.windows {
        done.push((format!("pairs/{window}"), load.measure(parameters, window)?));
    }
    Ok(done)
}

struct Load {
    side: Side,
    /// What each sender writes.
    messages: Vec<Vec<u8>>,
    /// By sender.
    sent: Vec<u64>,
    /// Senders whose message arrived in this turn.
    due: Vec<usize>,
}

impl Load {
    fn measure(&mut self, parameters: &Parameters, window: usize) -> Result<Values> {
        (0..PAIRS).for_each(|pair| (0..window).for_each(|_| self.send(pair)));
        self.run_for(parameters.warm_up())?;
        let (meter, before) = (Meter::start(self.side.server.pid())?, self.side.conns.deliveries);
        self.run_for(parameters.measured())?;
        let values = meter.stop()?.values(self.side.conns.deliveries - before);
        self.drain()?;
        Ok(values)
    }

    fn send(&mut self, pair: usize) {
        let message = &self.messages[pair];
        self.side.conns.write(pair, |out| out.extend_from_slice(message));
        self.sent[pair] += 1;
    }

    fn run_for(&mut self, time: std::time::Duration) -> Result<()> {
        let end = clock::now() + time;
        while clock::now() < end {
            let due = &mut self.due;
            self.side.conns.turn(TURN, &mut |index, event, _| {
                if event == Event::Delivery {
                    due.push(index - PAIRS);
                }
            })?;
            while let Some(pair) = self.due.pop() {
                self.send(pair);
            }
        }
        Ok(())
    }

    /// Waits for what is on the way; nothing may be lost or doubled.
    fn drain(&mut self) -> Result<()> {
        let wanted = self.sent.iter().sum();
        self.side.conns.await_deliveries(wanted, clock::now() + ANSWER_TIMEOUT)?;
        for (pair, &sent) in self.sent.iter().enumerate() {
            let got = self.side.conns.deliveries_of(PAIRS + pair);
            ensure!(got == sent, "receiver {pair} got {got} of {sent} messages");
        }
        Ok(())
    }
}
