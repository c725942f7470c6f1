//! How long a caller waits for its answer: `grpc-timeout`.

use std::time::Duration;

use tonic::codegen::http::HeaderMap;

/// Digits of the number (gRPC over HTTP/2, "Timeout").
const DIGITS_MAX: usize = 8;

/// Not a number of at most eight digits and a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed;

/// What the caller asks for; `None`: nothing.
///
/// # Errors
/// [`Malformed`].
pub(super) fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Malformed> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let (unit, digits) = value.as_bytes().split_last().ok_or(Malformed)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    let asked = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(Malformed),
    };
    Ok(Some(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            asked(&headers)
        };
        assert_eq!(asked(&HeaderMap::new()), Ok(None));
        for (text, ms) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4000), ("99999999m", 99_999_999)] {
            assert_eq!(of(text), Ok(Some(Duration::from_millis(ms))), "{text}");
        }
        assert_eq!(of("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(of("0n"), Ok(Some(Duration::ZERO)));
        for text in ["", "S", "5", "5s", "-5S", "5 S", "123456789S", "5SS"] {
            assert_eq!(of(text), Err(Malformed), "{text:?}");
        }
    }
}
