//! Verification codes: made, told to their phone through the configured issuer, checked once.
//!
//! Codes live in memory only: a restart voids them, and their owners ask again.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use subtle::ConstantTimeEq as _;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    config::{Checked, CodeIssuer},
    error::RequestError,
};

/// Long enough to type a code from another device.
pub const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// With six digits, guessing succeeds once in 200,000 codes.
pub const ATTEMPTS_MAX: u8 = 5;
/// A second code for one phone is refused for this long.
pub const REQUEST_INTERVAL: Duration = Duration::from_secs(30);
/// Codes that wait: about 100 B each. Full: new requests are refused until some expire.
const CODES_MAX: usize = 100_000;
const DIGITS: usize = 6;

/// Why no code was sent.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Nobody is configured to tell codes.
    #[error("no code issuer is configured; accounts are made by the backend")]
    NoIssuer,
    /// A code for this phone was sent less than [`REQUEST_INTERVAL`] ago.
    #[error("a code for this phone was sent less than {} s ago", REQUEST_INTERVAL.as_secs())]
    TooSoon,
    /// [`CODES_MAX`] codes wait, or the issuer failed.
    #[error("codes cannot be sent now")]
    Unavailable,
}

impl CodeError {
    /// Stable, as [`RequestError::reason`].
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoIssuer => "no_code_issuer",
            Self::TooSoon => "too_soon",
            Self::Unavailable => "unavailable",
        }
    }
}

impl From<CodeError> for Status {
    fn from(error: CodeError) -> Self {
        let code = match error {
            CodeError::NoIssuer => Code::FailedPrecondition,
            CodeError::TooSoon => Code::ResourceExhausted,
            CodeError::Unavailable => Code::Unavailable,
        };
        let mut status = Self::new(code, error.to_string());
        status.metadata_mut().insert("gimbal-reason", MetadataValue::from_static(error.reason()));
        status
    }
}

/// All codes that wait for their owners.
pub struct Codes {
    issuer: Issuer,
    any_code_signs_in: bool,
    waiting: Mutex<Waiting>,
}

enum Issuer {
    Nobody,
    Log,
    File { path: PathBuf, file: Mutex<File> },
}

#[derive(Default)]
struct Waiting {
    by_phone: HashMap<String, Issued>,
    /// In order of issue, which is the order of expiry.
    order: VecDeque<(Instant, String)>,
}

struct Issued {
    code: [u8; DIGITS],
    at: Instant,
    wrong: u8,
}

impl Codes {
    /// Opens the issuer of a configuration.
    ///
    /// # Errors
    /// When the issuer's file cannot be opened for appending.
    pub fn open(config: &Checked) -> io::Result<Self> {
        let issuer = match &config.config.code_issuer {
            None => Issuer::Nobody,
            Some(CodeIssuer::Log) => Issuer::Log,
            Some(CodeIssuer::File(path)) => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                Issuer::File { path: path.clone(), file: Mutex::new(file) }
            }
        };
        Ok(Self { issuer, any_code_signs_in: config.dev, waiting: Mutex::default() })
    }

    /// Makes a code for `phone` (already checked for its form) and has the issuer tell it. The code's lifetime is
    /// returned. `random` are 64 random bits.
    ///
    /// # Errors
    /// [`CodeError`].
    pub fn request(&self, phone: &str, now: Instant, random: u64) -> Result<Duration, CodeError> {
        if matches!(self.issuer, Issuer::Nobody) {
            return if self.any_code_signs_in { Ok(LIFETIME) } else { Err(CodeError::NoIssuer) };
        }
        let code = digits(random);
        {
            let mut waiting = self.lock();
            waiting.forget_expired(now);
            if waiting.by_phone.get(phone).is_some_and(|issued| now - issued.at < REQUEST_INTERVAL) {
                return Err(CodeError::TooSoon);
            }
            if waiting.order.len() >= CODES_MAX {
                return Err(CodeError::Unavailable);
            }
            waiting.order.push_back((now, phone.to_owned()));
            waiting.by_phone.insert(phone.to_owned(), Issued { code, at: now, wrong: 0 });
        }
        self.tell(phone, &code)?;
        Ok(LIFETIME)
    }

    /// Checks a code and, when it is right, consumes it.
    ///
    /// # Errors
    /// [`RequestError::BadCode`] when it is wrong, expired, used, or had [`ATTEMPTS_MAX`] wrong attempts.
    pub fn check(&self, phone: &str, code: &str, now: Instant) -> Result<(), RequestError> {
        if self.any_code_signs_in {
            return Ok(());
        }
        let mut waiting = self.lock();
        waiting.forget_expired(now);
        let issued = waiting.by_phone.get_mut(phone).ok_or(RequestError::BadCode)?;
        if issued.wrong >= ATTEMPTS_MAX {
            return Err(RequestError::BadCode);
        }
        if !bool::from(issued.code.as_slice().ct_eq(code.as_bytes())) {
            issued.wrong += 1;
            return Err(RequestError::BadCode);
        }
        // Kept until it expires, so that the next request still has to wait, but never right again.
        issued.wrong = ATTEMPTS_MAX;
        Ok(())
    }

    fn tell(&self, phone: &str, code: &[u8; DIGITS]) -> Result<(), CodeError> {
        let code = std::str::from_utf8(code).expect("digits are ASCII");
        match &self.issuer {
            Issuer::Nobody => {}
            Issuer::Log => tracing::info!(target: "gimbal_control::issuer", phone, code, "verification code"),
            Issuer::File { path, file } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // One write: lines of two calls never mix.
                file.write_all(format!("{phone} {code}\n").as_bytes()).map_err(|error| {
                    tracing::error!(%error, path = %path.display(), "code issuer's file");
                    CodeError::Unavailable
                })?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn forget_expired(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.front() {
            if now.saturating_duration_since(*at) < LIFETIME {
                break;
            }
            let (at, phone) = self.order.pop_front().expect("the front was just seen");
            if self.by_phone.get(&phone).is_some_and(|issued| issued.at == at) {
                self.by_phone.remove(&phone);
            }
        }
    }
}

/// Six digits of 64 random bits; the bias is below one in 10^13.
fn digits(random: u64) -> [u8; DIGITS] {
    let mut rest = random;
    std::array::from_fn(|_| {
        let digit = (rest % 10) as u8;
        rest /= 10;
        b'0' + digit
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, config::Config};

    fn with_file() -> (tempfile::TempDir, Codes, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes");
        let config = Config { code_issuer: Some(CodeIssuer::File(path.clone())), ..Config::default() };
        let mut checked = config.check(true).unwrap();
        checked.dev = false;
        let codes = Codes::open(&checked).unwrap();
        (dir, codes, path)
    }

    fn last_code(path: &PathBuf) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().last().unwrap().split_once(' ').unwrap().1.to_owned()
    }

    #[test]
    fn a_code_signs_in_once_within_its_lifetime() {
        let (_dir, codes, path) = with_file();
        let start = clock::now();
        codes.request("+49123", start, 1_234_567_890).unwrap();
        let code = last_code(&path);
        assert_eq!(code.len(), 6);
        assert_eq!(codes.check("+49124", &code, start), Err(RequestError::BadCode), "another phone");
        assert_eq!(codes.check("+49123", &code, start), Ok(()));
        assert_eq!(codes.check("+49123", &code, start), Err(RequestError::BadCode), "used");
        let later = start + REQUEST_INTERVAL;
        codes.request("+49123", later, 99).unwrap();
        assert_eq!(
            codes.check("+49123", &last_code(&path), later + LIFETIME),
            Err(RequestError::BadCode),
            "expired"
        );
    }

    #[test]
    fn five_wrong_attempts_void_a_code() {
        let (_dir, codes, path) = with_file();
        let now = clock::now();
        codes.request("1", now, 42).unwrap();
        for _ in 0..ATTEMPTS_MAX {
            assert_eq!(codes.check("1", "x", now), Err(RequestError::BadCode));
        }
        assert_eq!(codes.check("1", &last_code(&path), now), Err(RequestError::BadCode));
    }

    #[test]
    fn a_second_code_waits_and_a_file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, codes, path) = with_file();
        let now = clock::now();
        codes.request("1", now, 1).unwrap();
        assert!(matches!(codes.request("1", now, 2), Err(CodeError::TooSoon)));
        codes.request("2", now, 2).unwrap();
        codes.request("1", now + REQUEST_INTERVAL, 3).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_an_issuer_only_dev_signs_in() {
        let mut checked = Config::default().check(true).unwrap();
        let dev = Codes::open(&checked).unwrap();
        assert_eq!(dev.check("1", "anything", clock::now()), Ok(()));
        assert!(dev.request("1", clock::now(), 1).is_ok());
        checked.dev = false;
        let strict = Codes::open(&checked).unwrap();
        assert!(matches!(strict.request("1", clock::now(), 1), Err(CodeError::NoIssuer)));
        assert_eq!(strict.check("1", "000000", clock::now()), Err(RequestError::BadCode));
    }

    #[test]
    fn expired_codes_leave_no_memory() {
        let (_dir, codes, _) = with_file();
        let now = clock::now();
        for phone in 0..100 {
            codes.request(&phone.to_string(), now, phone).unwrap();
        }
        codes.request("new", now + LIFETIME, 7).unwrap();
        let waiting = codes.lock();
        assert_eq!((waiting.by_phone.len(), waiting.order.len()), (1, 1));
    }
}
