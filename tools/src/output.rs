//! Standard output that may go away: `gimbal ... | head` ends quietly instead of with a panic.

use std::{
    fmt::Arguments,
    io::{self, Write as _},
};

/// Prints text as `print!` does. When nobody reads any more, the process ends.
pub fn print(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        let is_closed = error.kind() == io::ErrorKind::BrokenPipe;
        if !is_closed {
            eprintln!("gimbal: cannot write: {error}");
        }
        std::process::exit(i32::from(!is_closed));
    }
}

/// Prints text for whoever may read it; a server goes on without.
pub fn tell(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// One line on standard output, as `println!`, but see [`print`].
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($text)*))) };
}
