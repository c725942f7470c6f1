//! Verification codes: made, told to their phone through the configured issuer, checked once.
//!
//! Codes live in memory only: a restart voids them, and their owners ask again.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
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
/// Wrong attempts for one phone within [`WINDOW`], over all its codes; then none is right until the window ends. Guessing
/// six digits so takes years; fewer would let anybody lock a person out by a few calls.
pub const ATTEMPTS_MAX: u8 = 20;
/// Codes sent to one phone within [`WINDOW`].
pub const CODES_PER_PHONE_MAX: u8 = 5;
/// What a phone's codes and attempts are counted over, from its first code on.
pub const WINDOW: Duration = Duration::from_secs(60 * 60);
/// A second code for one phone is refused for this long.
pub const REQUEST_INTERVAL: Duration = Duration::from_secs(30);
/// Phones remembered: about 100 B each. Full: the oldest is forgotten for a new one, unless its last code still waits or
/// somebody has guessed at it; codes for new phones are refused then.
const PHONES_MAX: usize = 500_000;
/// Addresses that asked within [`WINDOW`]: about 60 B each. Full: the oldest is forgotten.
const ADDRESSES_MAX: usize = 100_000;
const DIGITS: usize = 6;

/// Why no code was sent.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Nobody is configured to tell codes.
    #[error("no code issuer is configured; accounts are made by the backend")]
    NoIssuer,
    /// A code for this phone was sent less than [`REQUEST_INTERVAL`] ago.
    #[error("a code for this phone was sent less than {} s ago", REQUEST_INTERVAL.as_secs())]
    TooSoon {
        /// When the same call may succeed.
        after: Duration,
    },
    /// [`CODES_PER_PHONE_MAX`] codes were sent within [`WINDOW`].
    #[error("{CODES_PER_PHONE_MAX} codes for this phone were sent within an hour")]
    TooMany {
        /// When the same call may succeed.
        after: Duration,
    },
    /// As many codes as one address may have were asked for from it within [`WINDOW`].
    #[error("too many codes were asked for from this address within an hour")]
    TooManyFromAddress {
        /// When the same call may succeed.
        after: Duration,
    },
    /// [`PHONES_MAX`] phones are remembered, or the issuer failed.
    #[error("codes cannot be sent now")]
    Unavailable,
}

impl CodeError {
    /// Stable, as [`RequestError::reason`].
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoIssuer => "no_code_issuer",
            Self::TooSoon { .. } => "too_soon",
            Self::TooMany { .. } => "too_many_codes",
            Self::TooManyFromAddress { .. } => "too_many_codes_from_address",
            Self::Unavailable => "unavailable",
        }
    }

    /// When the same call may succeed; in gRPC metadata `gimbal-retry-after-ms`.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooSoon { after } | Self::TooMany { after } | Self::TooManyFromAddress { after } => {
                Some(*after)
            }
            Self::NoIssuer | Self::Unavailable => None,
        }
    }
}

impl From<CodeError> for Status {
    fn from(error: CodeError) -> Self {
        let code = match error {
            CodeError::NoIssuer => Code::FailedPrecondition,
            CodeError::TooSoon { .. } | CodeError::TooMany { .. } | CodeError::TooManyFromAddress { .. } => {
                Code::ResourceExhausted
            }
            CodeError::Unavailable => Code::Unavailable,
        };
        let mut status = Self::new(code, error.to_string());
        status.metadata_mut().insert("gimbal-reason", MetadataValue::from_static(error.reason()));
        if let Some(after) = error.retry_after() {
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert("gimbal-retry-after-ms", MetadataValue::from(after_ms));
        }
        status
    }
}

/// All codes that wait for their owners.
pub struct Codes {
    issuer: Issuer,
    any_code_signs_in: bool,
    per_address_max: AtomicU32,
    waiting: Mutex<Waiting>,
}

enum Issuer {
    Nobody,
    Log,
    File { path: PathBuf, file: Mutex<File> },
}

#[derive(Default)]
struct Waiting {
    by_phone: HashMap<String, Phone>,
    /// Phones by the begin of their window.
    order: VecDeque<(Instant, String)>,
    /// Begin of the window, and codes in it.
    by_address: HashMap<IpAddr, (Instant, u32)>,
    /// Addresses by the begin of their window.
    address_order: VecDeque<(Instant, IpAddr)>,
}

struct Phone {
    /// Begin of its window.
    since: Instant,
    codes: u8,
    wrong: u8,
    /// When the last code was sent.
    asked: Instant,
    /// The last code, until it is used.
    code: Option<[u8; DIGITS]>,
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
        let per_address_max = AtomicU32::new(config.config.limits.codes_per_address);
        Ok(Self { issuer, any_code_signs_in: config.dev, per_address_max, waiting: Mutex::default() })
    }

    /// From now on one address may ask for so many within [`WINDOW`]; 0: any number.
    pub(crate) fn set_per_address_max(&self, per_address_max: u32) {
        self.per_address_max.store(per_address_max, Ordering::Relaxed);
    }

    /// Makes a code for `phone` (already checked for its form) and has the issuer tell it. The code's lifetime is
    /// returned. `from` is the caller's address, if known; `random` are 64 random bits.
    ///
    /// # Errors
    /// [`CodeError`].
    pub fn request(
        &self,
        phone: &str,
        from: Option<IpAddr>,
        now: Instant,
        random: u64,
    ) -> Result<Duration, CodeError> {
        if matches!(self.issuer, Issuer::Nobody) {
            return if self.any_code_signs_in { Ok(LIFETIME) } else { Err(CodeError::NoIssuer) };
        }
        let code = digits(random);
        {
            let mut waiting = self.lock();
            waiting.forget(now);
            let per_address_max = self.per_address_max.load(Ordering::Relaxed);
            let counted = from.filter(|_| per_address_max > 0).map(source);
            if let Some(from) = counted {
                waiting.check_address(from, per_address_max, now)?;
            }
            waiting.issue(phone, code, now)?;
            if let Some(from) = counted {
                waiting.count_address(from, now);
            }
        }
        self.tell(phone, &code)?;
        Ok(LIFETIME)
    }

    /// Checks a code and, when it is right, consumes it.
    ///
    /// # Errors
    /// [`RequestError::BadCode`] when it is wrong, expired or used, or the phone had [`ATTEMPTS_MAX`] wrong attempts.
    pub fn check(&self, phone: &str, code: &str, now: Instant) -> Result<(), RequestError> {
        if self.any_code_signs_in {
            return Ok(());
        }
        let mut waiting = self.lock();
        let phone = waiting.by_phone.get_mut(phone).ok_or(RequestError::BadCode)?;
        let issued = phone.code.filter(|_| now.saturating_duration_since(phone.asked) < LIFETIME);
        let issued = issued.filter(|_| phone.wrong < ATTEMPTS_MAX).ok_or(RequestError::BadCode)?;
        if !bool::from(issued.as_slice().ct_eq(code.as_bytes())) {
            phone.wrong += 1;
            return Err(RequestError::BadCode);
        }
        phone.code = None;
        Ok(())
    }

    /// Takes back that a right code was consumed: the sign-in it was for has failed.
    pub fn give_back(&self, phone: &str, code: &str) {
        if let (Some(phone), Ok(code)) = (self.lock().by_phone.get_mut(phone), code.as_bytes().try_into()) {
            // A newer one stays.
            phone.code.get_or_insert(code);
        }
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
    fn issue(&mut self, phone: &str, code: [u8; DIGITS], now: Instant) -> Result<(), CodeError> {
        let is_full = self.by_phone.len() >= PHONES_MAX && !self.by_phone.contains_key(phone);
        if is_full && !self.forget_oldest(now) {
            return Err(CodeError::Unavailable);
        }
        let known = self.by_phone.get_mut(phone);
        if let Some(known) = &known {
            let after = REQUEST_INTERVAL.saturating_sub(now.saturating_duration_since(known.asked));
            if !after.is_zero() {
                return Err(CodeError::TooSoon { after });
            }
        }
        match known {
            Some(known) if now.saturating_duration_since(known.since) < WINDOW => {
                if known.codes >= CODES_PER_PHONE_MAX {
                    let after = WINDOW.saturating_sub(now.saturating_duration_since(known.since));
                    return Err(CodeError::TooMany { after });
                }
                (known.codes, known.asked, known.code) = (known.codes + 1, now, Some(code));
            }
            _ => {
                let fresh = Phone { since: now, codes: 1, wrong: 0, asked: now, code: Some(code) };
                self.by_phone.insert(phone.to_owned(), fresh);
                self.order.push_back((now, phone.to_owned()));
            }
        }
        Ok(())
    }

    /// Makes room for one phone; `false`: the oldest is still of use.
    fn forget_oldest(&mut self, now: Instant) -> bool {
        let Some((since, phone)) = self.order.front() else { return false };
        let known = self.by_phone.get(phone).filter(|known| known.since == *since);
        let is_of_use = known.is_some_and(|known| {
            known.wrong > 0 || (known.code.is_some() && now.saturating_duration_since(known.asked) < LIFETIME)
        });
        if is_of_use {
            return false;
        }
        let is_known = known.is_some();
        let (_, phone) = self.order.pop_front().expect("the front was just seen");
        if is_known {
            self.by_phone.remove(&phone);
        }
        is_known
    }

    fn check_address(&self, from: IpAddr, codes_max: u32, now: Instant) -> Result<(), CodeError> {
        match self.by_address.get(&from) {
            Some(&(since, codes)) if codes >= codes_max => {
                let after = WINDOW.saturating_sub(now.saturating_duration_since(since));
                if after.is_zero() { Ok(()) } else { Err(CodeError::TooManyFromAddress { after }) }
            }
            _ => Ok(()),
        }
    }

    fn count_address(&mut self, from: IpAddr, now: Instant) {
        if let Some((since, codes)) = self.by_address.get_mut(&from)
            && now.saturating_duration_since(*since) < WINDOW
        {
            *codes += 1;
            return;
        }
        self.by_address.insert(from, (now, 1));
        self.address_order.push_back((now, from));
        if self.address_order.len() > ADDRESSES_MAX {
            self.forget_address();
        }
    }

    fn forget_address(&mut self) {
        if let Some((since, from)) = self.address_order.pop_front()
            && self.by_address.get(&from).is_some_and(|known| known.0 == since)
        {
            self.by_address.remove(&from);
        }
    }

    /// Forgets phones whose window is over and whose last code has expired, and addresses whose window is over.
    fn forget(&mut self, now: Instant) {
        while let Some((since, _)) = self.address_order.front()
            && now.saturating_duration_since(*since) >= WINDOW
        {
            self.forget_address();
        }
        while let Some((since, _)) = self.order.front() {
            if now.saturating_duration_since(*since) < WINDOW + LIFETIME {
                break;
            }
            let (since, phone) = self.order.pop_front().expect("the front was just seen");
            if self.by_phone.get(&phone).is_some_and(|known| known.since == since) {
                self.by_phone.remove(&phone);
            }
        }
    }
}

/// What counts as one address: an IPv6 host has a whole /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
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
        codes.request("+49123", None, start, 1_234_567_890).unwrap();
        let code = last_code(&path);
        assert_eq!(code.len(), 6);
        assert_eq!(codes.check("+49124", &code, start), Err(RequestError::BadCode), "another phone");
        assert_eq!(codes.check("+49123", &code, start), Ok(()));
        assert_eq!(codes.check("+49123", &code, start), Err(RequestError::BadCode), "used");
        let later = start + REQUEST_INTERVAL;
        codes.request("+49123", None, later, 99).unwrap();
        assert_eq!(
            codes.check("+49123", &last_code(&path), later + LIFETIME),
            Err(RequestError::BadCode),
            "expired"
        );
    }

    #[test]
    fn guesses_are_counted_over_all_codes_of_an_hour_and_a_few_lock_nobody_out() {
        let (_dir, codes, path) = with_file();
        let start = clock::now();
        codes.request("1", None, start, 42).unwrap();
        for _ in 0..ATTEMPTS_MAX / 2 {
            assert_eq!(codes.check("1", "x", start), Err(RequestError::BadCode));
        }
        assert_eq!(codes.check("1", &last_code(&path), start), Ok(()), "a stranger's guesses void no code");
        let later = start + REQUEST_INTERVAL;
        codes.request("1", None, later, 43).unwrap();
        for _ in 0..ATTEMPTS_MAX / 2 {
            assert_eq!(codes.check("1", "x", later), Err(RequestError::BadCode));
        }
        assert_eq!(codes.check("1", &last_code(&path), later), Err(RequestError::BadCode), "too many");
        codes.request("1", None, start + WINDOW, 44).unwrap();
        assert_eq!(codes.check("1", &last_code(&path), start + WINDOW), Ok(()), "another hour");
    }

    #[test]
    fn a_phone_gets_a_few_codes_an_hour() {
        let (_dir, codes, _) = with_file();
        let start = clock::now();
        for n in 0..u32::from(CODES_PER_PHONE_MAX) {
            codes.request("1", None, start + REQUEST_INTERVAL * n, 1).unwrap();
        }
        let soon = start + REQUEST_INTERVAL * u32::from(CODES_PER_PHONE_MAX);
        assert!(matches!(codes.request("1", None, soon, 1), Err(CodeError::TooMany { .. })));
        codes.request("2", None, soon, 1).unwrap();
        codes.request("1", None, start + WINDOW, 1).unwrap();
    }

    #[test]
    fn a_code_whose_sign_in_failed_is_right_again_unless_a_newer_one_was_sent() {
        let (_dir, codes, path) = with_file();
        let start = clock::now();
        codes.request("1", None, start, 5).unwrap();
        let first = last_code(&path);
        codes.check("1", &first, start).unwrap();
        codes.give_back("1", &first);
        assert_eq!(codes.check("1", &first, start), Ok(()));
        codes.request("1", None, start + REQUEST_INTERVAL, 678_901).unwrap();
        codes.give_back("1", &first);
        assert_eq!(codes.check("1", &first, start + REQUEST_INTERVAL), Err(RequestError::BadCode));
        assert_eq!(codes.check("1", &last_code(&path), start + REQUEST_INTERVAL), Ok(()));
    }

    #[test]
    fn a_second_code_waits_and_a_file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, codes, path) = with_file();
        let now = clock::now();
        codes.request("1", None, now, 1).unwrap();
        assert!(
            matches!(codes.request("1", None, now, 2), Err(CodeError::TooSoon { after }) if after == REQUEST_INTERVAL)
        );
        codes.request("2", None, now, 2).unwrap();
        codes.request("1", None, now + REQUEST_INTERVAL, 3).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_an_issuer_only_dev_signs_in() {
        let mut checked = Config::default().check(true).unwrap();
        let dev = Codes::open(&checked).unwrap();
        assert_eq!(dev.check("1", "anything", clock::now()), Ok(()));
        assert!(dev.request("1", None, clock::now(), 1).is_ok());
        checked.dev = false;
        let strict = Codes::open(&checked).unwrap();
        assert!(matches!(strict.request("1", None, clock::now(), 1), Err(CodeError::NoIssuer)));
        assert_eq!(strict.check("1", "000000", clock::now()), Err(RequestError::BadCode));
    }

    #[test]
    fn forgotten_phones_leave_no_memory() {
        let (_dir, codes, _) = with_file();
        let now = clock::now();
        for phone in 0..100 {
            codes.request(&phone.to_string(), None, now, phone).unwrap();
        }
        codes.request("new", None, now + WINDOW + LIFETIME, 7).unwrap();
        let waiting = codes.lock();
        assert_eq!((waiting.by_phone.len(), waiting.order.len()), (1, 1));
    }

    #[test]
    fn one_address_gets_so_many_codes_an_hour_for_whatever_phones() {
        let (_dir, codes, _) = with_file();
        codes.set_per_address_max(3);
        let start = clock::now();
        let [host, same, other] = ["2001:db8::1", "2001:db8::ffff:2", "192.0.2.1"].map(|a| a.parse().ok());
        for (phone, from) in [("1", host), ("2", same), ("3", host)] {
            codes.request(phone, from, start, 1).unwrap();
        }
        let refused = codes.request("4", same, start + Duration::from_secs(600), 1).unwrap_err();
        assert_eq!(refused.retry_after(), Some(WINDOW - Duration::from_secs(600)));
        let status = Status::from(refused);
        assert_eq!(status.metadata().get("gimbal-retry-after-ms").unwrap(), "3000000");
        assert_eq!(status.metadata().get("gimbal-reason").unwrap(), "too_many_codes_from_address");
        codes.request("4", other, start, 1).unwrap();
        assert!(matches!(codes.request("4", other, start, 1), Err(CodeError::TooSoon { .. })));
        codes.request("5", host, start + WINDOW, 1).unwrap();
        let waiting = codes.lock();
        assert_eq!((waiting.by_address.len(), waiting.address_order.len()), (1, 1));
        assert!(!waiting.by_phone.contains_key("6"));
    }

    #[test]
    fn a_full_table_forgets_the_oldest_phone_unless_that_is_of_use() {
        let mut waiting = Waiting::default();
        let start = clock::now();
        for phone in 0..PHONES_MAX {
            waiting.issue(&phone.to_string(), [b'1'; DIGITS], start).unwrap();
        }
        let newcomer = |waiting: &mut Waiting, phone: &str, at| waiting.issue(phone, [b'2'; DIGITS], at);
        assert!(matches!(newcomer(&mut waiting, "a", start), Err(CodeError::Unavailable)), "codes wait");
        newcomer(&mut waiting, "a", start + LIFETIME).unwrap();
        assert!(!waiting.by_phone.contains_key("0") && waiting.by_phone.len() == PHONES_MAX);
        waiting.by_phone.get_mut("1").unwrap().wrong = 1;
        let refused = newcomer(&mut waiting, "b", start + LIFETIME);
        assert!(matches!(refused, Err(CodeError::Unavailable)), "guesses are not forgotten");
    }
}
