//! The people of a mixed load, by fours: two who send, one who wanders between its room and none, one who comes and goes.

use std::time::Duration;

use anyhow::Result;
use gimbal_codec::{
    ClientMessageId, Command, Packet, RoomId, Seq,
    body::{Message, Reply, Rooms, Send, SendResult},
    code, frame,
};

use super::ROOM;
use crate::{
    clock,
    ledger::{Mark, Outcome, Sent},
    load::{
        fleet::sign_in_frame,
        inbox::{Inbox, Tally},
        nanos,
        sockets::{Event, Sockets},
        stage::Stage,
    },
    report::Latency,
};

/// Most open messages of one sender; beyond it sends are late, and their latency says so.
const OPEN_MAX: usize = 1_024;

/// What a person does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Sends to the next person, and stays in its room.
    Sender,
    /// Takes messages; leaves and enters its room.
    Wanderer,
    /// Takes messages; goes and comes back.
    Visitor,
}

/// One user with its connection.
pub(super) struct Person {
    pub(super) role: Role,
    /// `None` while away.
    socket: Option<usize>,
    is_online: bool,
    /// When its last connection should have been there.
    came_ns: u64,
    room: u64,
    /// Its join was answered and it has not left since.
    is_in_room: bool,
    room_seq: Option<u64>,
    pub(super) inbox: Inbox,
    pub(super) sent: Sent,
    intended_ns: Vec<u64>,
}

/// All of them.
pub(super) struct Crew<'a> {
    pub(super) sockets: Sockets,
    pub(super) state: State,
    /// Whose a socket is.
    owners: Vec<usize>,
    stage: &'a Stage<'a>,
    bytes: usize,
}

/// Everything the events change.
#[derive(Default)]
pub(super) struct State {
    pub(super) people: Vec<Person>,
    pub(super) tally: Tally,
    pub(super) acks: Latency,
    pub(super) rooms: Latency,
    pub(super) heartbeats: Latency,
    pub(super) sign_ins: Latency,
    pub(super) room_deliveries: u64,
    pub(super) published: u64,
    pub(super) is_measuring: bool,
    /// Only what should have been sent from then on is measured.
    pub(super) measure_from_ns: u64,
    /// Joins that are not answered.
    pub(super) entering: usize,
}

impl<'a> Crew<'a> {
    /// All signed in, none in a room; socket and person have the same number so far.
    pub(super) fn new(sockets: Sockets, stage: &'a Stage<'a>, bytes: usize, rooms: usize) -> Self {
        let person = |index: usize| Person {
            role: [Role::Sender, Role::Wanderer, Role::Sender, Role::Visitor][index % 4],
            socket: Some(index),
            is_online: true,
            came_ns: 0,
            room: ROOM + (index % rooms) as u64,
            is_in_room: false,
            room_seq: None,
            inbox: Inbox { sender: index.saturating_sub(1) as u32, ..Inbox::default() },
            sent: Sent::default(),
            intended_ns: Vec::new(),
        };
        let count = stage.members.len();
        let tally = Tally { run: nanos(clock::unix()), now_ns: clock::shared_ns(), ..Tally::default() };
        let state = State { people: (0..count).map(person).collect(), tally, ..State::default() };
        Self { sockets, state, owners: (0..count).collect(), stage, bytes }
    }

    /// Everybody but visitors joins its room.
    pub(super) fn enter_rooms(&mut self) {
        for index in 0..self.state.people.len() {
            if self.state.people[index].role != Role::Visitor {
                self.change_room(index, Command::Join);
            }
        }
    }

    fn change_room(&mut self, index: usize, command: Command) {
        let person = &mut self.state.people[index];
        let Some(socket) = person.socket else { return };
        let rooms = Rooms { rooms: vec![RoomId::new(person.room)] };
        self.state.entering += usize::from(command == Command::Join);
        (person.is_in_room, person.room_seq) = (false, None);
        self.sockets.write(socket, |out| out.extend_from_slice(&frame(command, "", 0, &rooms)));
    }

    /// The next sender's next message.
    pub(super) fn send(&mut self, number: u64, intended_ns: u64) {
        let index = (number % (self.state.people.len() as u64 / 2)) as usize * 2;
        let to = self.stage.members[index + 1].user;
        let person = &mut self.state.people[index];
        let Some(socket) = person.socket.filter(|_| person.sent.open() < OPEN_MAX) else { return };
        let number = person.sent.enter();
        person.intended_ns.push(intended_ns);
        let mut content = Vec::with_capacity(self.bytes);
        Mark { run: self.state.tally.run, sender: index as u32, number, intended_ns }
            .write(self.bytes, &mut content);
        let client_message_id = ClientMessageId::new(u64::from(number) + 1);
        let send = Send { client_message_id, to, command: 1, content: &content, ..Send::default() };
        let made = frame(Command::Send, "", number.into(), &send);
        self.sockets.write(socket, |out| out.extend_from_slice(&made));
        self.state.tally.counts.sent += 1;
    }

    /// The next person's heartbeat.
    pub(super) fn beat(&mut self, number: u64, intended_ns: u64) {
        let person = &self.state.people[(number % self.state.people.len() as u64) as usize];
        let Some(socket) = person.socket.filter(|_| person.is_online) else { return };
        let made = frame(Command::Heartbeat, "", intended_ns, &());
        self.sockets.write(socket, |out| out.extend_from_slice(&made));
    }

    /// The next wanderer leaves its room or enters it again.
    pub(super) fn wander(&mut self, number: u64) {
        let index = (number % (self.state.people.len() as u64 / 4)) as usize * 4 + 1;
        let command = if self.state.people[index].is_in_room { Command::Leave } else { Command::Join };
        self.change_room(index, command);
    }

    /// The next visitor goes, and one that went half a round before comes back: in the end half of them are away.
    pub(super) fn visit(&mut self, number: u64) -> Result<()> {
        let count = self.state.people.len() as u64 / 4;
        let visitor = |number: u64| (number % count) as usize * 4 + 3;
        let leaver = &mut self.state.people[visitor(number)];
        if let Some(socket) = leaver.socket.take() {
            leaver.is_online = false;
            self.sockets.close(socket);
        }
        let back = number.checked_sub(count.div_ceil(2)).map(visitor);
        match back.filter(|&index| self.state.people[index].socket.is_none()) {
            Some(index) => self.come(index),
            None => Ok(()),
        }
    }

    fn come(&mut self, index: usize) -> Result<()> {
        let socket = self.sockets.begin_connect(self.stage.target.address)?;
        let person = &mut self.state.people[index];
        let cursor = Seq::new(person.inbox.received.cursor());
        let made = sign_in_frame(&self.stage.members[index], Some(cursor));
        self.sockets.write(socket, |out| out.extend_from_slice(&made));
        (person.socket, person.came_ns) = (Some(socket), clock::shared_ns());
        self.owners.push(index);
        Ok(())
    }

    /// Whoever is away comes back, to be given what it missed.
    pub(super) fn all_come_back(&mut self) -> Result<()> {
        let away: Vec<usize> = (0..self.state.people.len())
            .filter(|&index| {
                self.state.people[index].role == Role::Visitor && self.state.people[index].socket.is_none()
            })
            .collect();
        away.into_iter().try_for_each(|index| self.come(index))
    }

    /// Everything is answered, and everything acknowledged was given to its recipient.
    pub(super) fn is_complete(&self) -> bool {
        self.state.people.chunks(2).all(|pair| {
            pair[0].sent.open() == 0 && pair[1].inbox.received.cursor() >= pair[0].sent.acked() as u64
        })
    }

    /// One turn of the sockets.
    pub(super) fn turn(&mut self, wait: Duration) -> Result<()> {
        let (state, owners) = (&mut self.state, &self.owners);
        self.sockets.poll(wait, &mut |socket, event, out| {
            state.tally.now_ns = clock::shared_ns();
            let index = owners[socket];
            if let Err(why) = state.handle(index, event, out) {
                state.tally.counts.unexpected += 1;
                state.tally.fault(format!("person {index}: {why}"));
            }
        })?;
        self.state.tally.now_ns = clock::shared_ns();
        Ok(())
    }
}

impl State {
    fn handle(&mut self, index: usize, event: Event<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        let packet = match event {
            Event::Frame(packet) => packet,
            Event::Closed(why) => {
                (self.people[index].socket, self.people[index].is_online) = (None, false);
                self.tally.counts.closed += 1;
                self.tally.fault(format!("person {index}'s connection ended: {why}"));
                return Ok(());
            }
        };
        // A visitor's messages wait for it: how long says nothing about the server.
        self.tally.is_measuring = self.is_measuring && self.people[index].role != Role::Visitor;
        if self.people[index].inbox.handle(&packet, out, &mut self.tally)? {
            return Ok(());
        }
        let reply = || Reply::decode(packet.content).map_err(|error| error.to_string());
        match Command::try_from(packet.command).map_err(|error| error.to_string())? {
            Command::Send => self.take_answer(index, &packet),
            Command::Message => self.take_room(index, &packet),
            Command::Heartbeat => {
                self.tally.counts.heartbeats += 1;
                self.heartbeats.record(self.tally.now_ns.saturating_sub(packet.seq));
                Ok(())
            }
            Command::SignIn => self.take_sign_in(index, &reply()?),
            Command::Join => {
                self.entering = self.entering.saturating_sub(1);
                self.people[index].is_in_room = reply()?.code == code::OK;
                self.refused(&reply()?)
            }
            Command::Leave => self.refused(&reply()?),
            other => Err(format!("unexpected {other:?}")),
        }
    }

    fn refused(&mut self, reply: &Reply<'_>) -> Result<(), String> {
        if reply.code != code::OK {
            self.tally.counts.refused += 1;
            self.tally.fault(format!("refused: {} ({})", reply.message, reply.code));
        }
        Ok(())
    }

    fn take_sign_in(&mut self, index: usize, reply: &Reply<'_>) -> Result<(), String> {
        let person = &mut self.people[index];
        person.is_online = reply.code == code::OK;
        self.tally.counts.signed_in += u64::from(person.is_online);
        self.sign_ins.record(self.tally.now_ns.saturating_sub(person.came_ns));
        self.refused(reply)
    }

    fn take_answer(&mut self, index: usize, packet: &Packet<'_>) -> Result<(), String> {
        let reply = Reply::decode(packet.content).map_err(|error| error.to_string())?;
        let person = &mut self.people[index];
        let number = u32::try_from(packet.seq).map_err(|_| "an answer to nothing")?;
        let intended_ns = *person.intended_ns.get(number as usize).ok_or("an answer to nothing")?;
        match reply.code {
            code::OK => {
                let result = SendResult::decode(reply.data).map_err(|error| error.to_string())?;
                person.sent.answer(number, Outcome::Acked(result.seq.get()));
                self.tally.counts.acked += 1;
                self.acks.record(self.tally.now_ns.saturating_sub(intended_ns));
                Ok(())
            }
            code::BUSY => {
                person.sent.answer(number, Outcome::Refused);
                self.tally.counts.shed += 1;
                Ok(())
            }
            _ => {
                person.sent.answer(number, Outcome::Refused);
                self.refused(&reply)
            }
        }
    }

    fn take_room(&mut self, index: usize, packet: &Packet<'_>) -> Result<(), String> {
        let message = Message::decode(packet.content).map_err(|error| error.to_string())?;
        let person = &mut self.people[index];
        if message.room.get() != person.room {
            return Err(format!("a message of room {}", message.room.get()));
        }
        self.room_deliveries += 1;
        let mark = Mark::read(message.content).filter(|mark| mark.intended_ns >= self.measure_from_ns);
        if let Some(mark) = mark.filter(|_| self.is_measuring) {
            self.rooms.record(self.tally.now_ns.saturating_sub(mark.intended_ns));
        }
        if !person.is_in_room {
            return Ok(()); // on its way while the person left or entered
        }
        let seq = message.room_seq;
        let count = match person.room_seq.replace(seq) {
            Some(before) if seq == before => &mut self.tally.counts.duplicated,
            Some(before) if seq < before => &mut self.tally.counts.reordered,
            Some(before) if seq > before + 1 => &mut self.tally.counts.gaps,
            _ => return Ok(()),
        };
        *count += 1;
        self.tally.fault(format!("person {index}: room number {seq} is not the next one"));
        Ok(())
    }
}
