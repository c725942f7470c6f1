//! Arguments of the hostile peers.

use std::process::ExitCode;

use anyhow::Result;
use gimbal::scenario::hostile::{self, Transport};

use super::{aim::Aim, seconds};

#[derive(clap::Args, Debug)]
pub(crate) struct Hostile {
    #[command(flatten)]
    aim: Aim,
    /// Transports of honest clients and attackers: tcp, websocket, tls, wss, quic, or all
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "LIST")]
    transport: Vec<String>,
    /// Attacks by name, or all
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "LIST")]
    attack: Vec<String>,
    /// Connections of those attacks that are about their number
    #[arg(long, default_value_t = 1_000)]
    attackers: usize,
    /// Honest connections; they write to each other in pairs and share a room
    #[arg(long, default_value_t = 40)]
    honest: usize,
    /// Durable messages per second over all honest connections
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// Publishes per second to their room
    #[arg(long, default_value_t = 20.0)]
    publishes: f64,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds of traffic, and of the attack, before each round is measured
    #[arg(long, default_value_t = 2.5, value_parser = seconds)]
    lead: f64,
    /// Seconds of each round
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    round: f64,
    /// Rounds of each kind, quiet and attacked in turn; the medians are compared
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The server's memory_max, MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory: u64,
    /// The server's deadlines for sign-ins and for sockets that take nothing, seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    deadline: f64,
    /// Further lines of the server's [gateway] table, as: frames_per_second = 200
    #[arg(long, value_name = "LINE")]
    gateway: Vec<String>,
    /// How nice the attackers' thread is to that of the honest clients, 0 to 19
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(u8).range(0..=19))]
    niceness: u8,
    /// Fail, too, when an honest p99 is above twice its quiet value
    #[arg(long)]
    enforce: bool,
}

impl Hostile {
    pub(super) fn run(self) -> Result<ExitCode> {
        let parameters = hostile::Parameters {
            transports: transports(&self.transport)?,
            attacks: self.attack.into_iter().filter(|name| name != "all").collect(),
            attackers: self.attackers,
            honest: self.honest,
            rate: self.rate,
            publishes: self.publishes,
            bytes: self.bytes,
            lead_s: self.lead,
            round_s: self.round,
            rounds: self.rounds,
            memory_max: self.memory << 20,
            deadline_s: self.deadline,
            gateway: self.gateway,
            niceness: self.niceness,
            enforce: self.enforce,
        };
        let aim = self.aim;
        aim.conclude(&hostile::run(&parameters, |config| aim.open_own(config))?)
    }
}

fn transports(names: &[String]) -> Result<Vec<Transport>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Transport::ALL.to_vec());
    }
    let find = |name: &String| {
        let found = Transport::ALL.into_iter().find(|transport| transport.name() == name);
        found.ok_or_else(|| anyhow::anyhow!("{name:?} is none of tcp, websocket, tls, wss, quic, all"))
    };
    names.iter().map(find).collect()
}
