//! Ctrl-C and SIGTERM: a run ends early and still writes what it has.

use std::{
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Processes that must not outlive this one.
static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Whether the run should end now and report what it has.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Remembers a child for a second signal, which ends it and this process at once.
pub fn add_child(pid: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
}

/// Forgets a child that has ended.
pub fn remove_child(pid: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).retain(|&other| other != pid);
}

/// Sends a signal to a process; trouble is ignored, for it may just have ended.
pub fn tell(pid: u32, what: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, what);
    }
}

/// From now on the first SIGINT or SIGTERM asks for an early end and the second one ends the process.
///
/// # Errors
/// When the thread that waits for signals cannot be started.
pub fn install() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("no runtime")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if REQUESTED.swap(true, Ordering::Relaxed) {
                let children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
                children.iter().for_each(|&pid| tell(pid, Signal::KILL));
                process::exit(INTERRUPTED);
            }
            eprintln!("gimbal: ending early; once more to end at once");
        }
    };
    let thread = thread::Builder::new().name("signals".into());
    thread.spawn(move || runtime.block_on(wait)).context("no thread for signals")?;
    Ok(())
}
