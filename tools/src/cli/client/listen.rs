//! Listening: the mailbox and rooms, line by line, over as many connections as it takes.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use gimbal::{
    client::{ClientError, Closed, Event, Item, Mailbox},
    inspect::printable,
};
use gimbal_codec::{Advice, CloseReason, RoomId};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{DeviceArgs, device::Device, line};

/// First and longest pause before a new connection.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How listening ended.
enum End {
    /// As many messages as were wanted, or a signal.
    Done,
    /// The connection ended, and how long to wait for the next.
    Again(Duration),
}

/// Prints messages until `count` of them came or the process is told to stop.
pub(super) async fn listen(
    args: DeviceArgs,
    name: &str,
    rooms: &[RoomId],
    count: Option<u64>,
) -> Result<ExitCode> {
    let mut device = Device::open(args, name).await?;
    let mut left = count.unwrap_or(u64::MAX);
    let mut pause = PAUSE.0;
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        let end = tokio::select! {
            end = one_connection(&mut device, rooms, &mut left, &mut pause) => end?,
            _ = tokio::signal::ctrl_c() => End::Done,
            _ = stop.recv() => End::Done,
        };
        match end {
            End::Done => return Ok(ExitCode::SUCCESS),
            End::Again(wait) => {
                let wait = wait.max(pause);
                pause = (pause * 2).min(PAUSE.1);
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
                    _ = stop.recv() => return Ok(ExitCode::SUCCESS),
                }
            }
        }
    }
}

async fn one_connection(
    device: &mut Device,
    rooms: &[RoomId],
    left: &mut u64,
    pause: &mut Duration,
) -> Result<End> {
    let mut mailbox = match device.mailbox().await {
        Ok(mailbox) => mailbox,
        Err(error) => return after(error),
    };
    *pause = PAUSE.0;
    if !rooms.is_empty()
        && let Err(error) = mailbox.client().join(rooms).await
    {
        return after(error);
    }
    gimbal::say!("user {} device {} listening", device.user(), device.device());
    if !rooms.is_empty() {
        let rooms: Vec<String> = rooms.iter().map(RoomId::to_string).collect();
        gimbal::say!("in room {}", rooms.join(", "));
    }
    while *left > 0 {
        match mailbox.next().await {
            Ok(item) => {
                let counts = take(device, &mailbox, item).await?;
                *left -= u64::from(counts);
            }
            Err(error) => return after(error),
        }
    }
    // The last acknowledgement is on its way; an answered heartbeat says that it arrived.
    let _ = mailbox.client().heartbeat().await;
    Ok(End::Done)
}

/// Prints an item; `true` when it is a message.
async fn take(device: &mut Device, mailbox: &Mailbox, item: Item) -> Result<bool> {
    match item {
        Item::Message(message) => {
            gimbal::say!("{}", line(&message));
            device.save_cursor(message.seq)?;
            // The answer would only repeat it; a lost acknowledgement is made good by the next.
            let _ = mailbox.client().begin_ack(message.seq).await;
            return Ok(true);
        }
        Item::Room(_, message) | Item::Unstored(message) => {
            gimbal::say!("{}", line(&message));
            return Ok(true);
        }
        Item::Trimmed(seq) => {
            gimbal::say!("messages up to seq {seq} are no longer kept");
            device.save_cursor(seq)?;
        }
        Item::Other(Event::Signal { from_user, command, content, .. }) => {
            gimbal::say!("signal from user {from_user}  command {command}  {}", printable(&content));
        }
        Item::Other(other) => eprintln!("{other:?}"),
    }
    Ok(false)
}

/// What a client does after an end, by the close code's advice.
fn after(error: ClientError) -> Result<End> {
    let wait = match &error {
        ClientError::Closed(closed) => match advice(closed) {
            Advice::Reconnect | Advice::ReconnectLater => closed.retry_after,
            Advice::SignInAgain | Advice::Never => bail!("{error}"),
        },
        ClientError::Connect { .. } | ClientError::Timeout(_) => Duration::ZERO,
        ClientError::Refused { code, .. } if is_passing(*code) => Duration::ZERO,
        _ => bail!("{error}"),
    };
    eprintln!("{error}; connecting again");
    Ok(End::Again(wait))
}

fn is_passing(code: i32) -> bool {
    use gimbal_codec::code::{BUSY, SERVER_ERROR, UNAVAILABLE};
    [BUSY, SERVER_ERROR, UNAVAILABLE].contains(&code)
}

/// By the range, so that unknown codes are obeyed as well.
fn advice(closed: &Closed) -> Advice {
    match closed.code {
        None => Advice::Reconnect,
        Some(code) => CloseReason::from_code(code).map_or_else(|| by_range(code), CloseReason::advice),
    }
}

fn by_range(code: u16) -> Advice {
    match code / 100 {
        40 => Advice::Reconnect,
        41 => Advice::ReconnectLater,
        42 => Advice::SignInAgain,
        _ => Advice::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_codes_are_judged_by_their_range() {
        let closed = |code| Closed { code: Some(code), reason: String::new(), retry_after: Duration::ZERO };
        assert_eq!(advice(&closed(4050)), Advice::Reconnect);
        assert_eq!(advice(&closed(4199)), Advice::ReconnectLater);
        assert_eq!(advice(&closed(4299)), Advice::SignInAgain);
        assert_eq!(advice(&closed(4399)), Advice::Never);
        for &reason in CloseReason::ALL {
            assert_eq!(by_range(reason.code()), reason.advice());
        }
    }

    #[test]
    fn a_takeover_ends_listening_and_a_drain_does_not() {
        let closed = |reason: CloseReason| {
            after(ClientError::Closed(Closed {
                code: Some(reason.code()),
                reason: reason.text().into(),
                retry_after: Duration::from_secs(3),
            }))
        };
        assert!(closed(CloseReason::Takeover).is_err());
        assert!(
            matches!(closed(CloseReason::Draining), Ok(End::Again(wait)) if wait == Duration::from_secs(3))
        );
    }
}
