//! Whether a device may come in: its token, and nothing else.

use gimbal_codec::{Attach, DeviceId, UserId};
use subtle::ConstantTimeEq as _;

use crate::command::{NewToken, TokenHash};
use crate::error::RequestError;
use crate::store::key::OfDevice;
use crate::store::value::{TokenRecord, Value as _};
use crate::store::{Table, View};

/// Checks a shown token against the store or a snapshot of it.
///
/// # Errors
/// [`RequestError::NotSignedIn`], alike for an unknown user, an unknown device, and a wrong, expired or revoked token;
/// a store error.
pub fn authenticate(
    view: &dyn View,
    user: UserId,
    device: DeviceId,
    shown: &TokenHash,
    now_ms: i64,
) -> Result<(), RequestError> {
    let stored = view.get(Table::Device, &OfDevice::Token.key(user, device))?;
    let record = stored
        .map(|bytes| TokenRecord::from_bytes(&bytes))
        .transpose()
        .map_err(crate::store::StoreError::from)?;
    check(record, shown, now_ms)
}

/// The rule itself.
///
/// # Errors
/// [`RequestError::NotSignedIn`].
pub(crate) fn check(record: Option<TokenRecord>, shown: &TokenHash, now_ms: i64) -> Result<(), RequestError> {
    let token = record.and_then(|record| record.token).ok_or(RequestError::NotSignedIn)?;
    if is_valid(&token, now_ms) && same(&token.hash, shown) { Ok(()) } else { Err(RequestError::NotSignedIn) }
}

/// Whether a session with this attach number may go on: its token is the current one and valid, or somebody vouches for the
/// device, and it began at `vouched_since` or later. How long that counts, the gateway knows.
pub(crate) fn may_stay(record: TokenRecord, session: Attach, vouched_since: Attach, now_ms: i64) -> bool {
    let by_token = record.token.is_some_and(|token| is_valid(&token, now_ms));
    let by_word = record.vouched && session >= vouched_since;
    session >= record.since && (by_token || by_word)
}

/// Not yet expired: a token ends at its expiry, not after it.
pub(crate) const fn is_valid(token: &NewToken, now_ms: i64) -> bool {
    now_ms < token.expires_at_ms
}

/// In constant time.
pub(crate) fn same(one: &TokenHash, other: &TokenHash) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_current_token_before_its_expiry_opens_the_door() {
        let hash = TokenHash::of(b"secret");
        let token = Some(NewToken { hash, expires_at_ms: 100 });
        let record = TokenRecord { generation: 1, since: Attach::new(5), token, ..TokenRecord::NONE };
        assert_eq!(check(Some(record), &hash, 99), Ok(()));
        assert_eq!(check(Some(record), &hash, 100), Err(RequestError::NotSignedIn), "expired");
        assert_eq!(
            check(Some(record), &TokenHash::of(b"guess"), 99),
            Err(RequestError::NotSignedIn),
            "wrong"
        );
        let revoked = TokenRecord { token: None, ..record };
        assert_eq!(check(Some(revoked), &hash, 99), Err(RequestError::NotSignedIn), "revoked");
        assert_eq!(check(None, &hash, 99), Err(RequestError::NotSignedIn), "unknown");
    }

    #[test]
    fn a_session_stays_while_the_token_that_it_showed_is_the_current_one() {
        let token = Some(NewToken { hash: TokenHash::of(b"secret"), expires_at_ms: 100 });
        let record = TokenRecord { generation: 2, since: Attach::new(5), token, ..TokenRecord::NONE };
        let stays = |record, session| may_stay(record, Attach::new(session), Attach::new(7), 99);
        assert!(stays(record, 5));
        assert!(!stays(record, 4), "of an earlier token");
        assert!(!may_stay(record, Attach::new(5), Attach::new(7), 100), "expired");
        let revoked = TokenRecord { token: None, ..record };
        assert!(!stays(revoked, 9), "revoked");
        let vouched = TokenRecord { vouched: true, ..revoked };
        assert!(stays(vouched, 7));
        assert!(!stays(vouched, 6), "from before the revocation");
        assert!(!stays(TokenRecord { since: Attach::new(8), ..vouched }, 7), "revoked for the device alone");
    }
}
