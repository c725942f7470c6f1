//! Arguments of the day of a product.

use std::process::ExitCode;

use anyhow::Result;
use gimbal::scenario::social::{self, Parameters};

use super::{aim::Aim, seconds, shapes::rate};

#[derive(clap::Args, Debug)]
pub(crate) struct Social {
    #[command(flatten)]
    aim: Aim,
    /// People there are when the day begins
    #[arg(long, default_value_t = 200)]
    users: usize,
    /// Acts per second, open loop: four of five are messages
    #[arg(long, default_value = "200", value_parser = rate)]
    rate: f64,
    /// Devices per second that come, go, or come anew
    #[arg(long, default_value = "5", value_parser = super::shapes::rate_or_none)]
    churn: f64,
    /// Bytes of what is said
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds of the day
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    duration: f64,
    /// Times that the server is killed (SIGKILL) and started again during the day
    #[arg(long, default_value_t = 0, requires = "start", value_parser = clap::value_parser!(u32).range(..=100))]
    restart: u32,
    /// Of the choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Social {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, users, rate, churn, bytes, duration, restart, seed } = self;
        let parameters = Parameters { users, rate, churn, bytes, duration_s: duration, restart, seed };
        aim.conclude(&social::run(aim.open()?, &parameters)?)
    }
}
