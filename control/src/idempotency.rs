//! Writes that are not sends are made repeatable by the caller's key: the first answer is remembered for a day.

use crate::command::IdempotencyKey;
use crate::error::RequestError;
use crate::executor::overlay::Overlay;
use crate::partition::Partition;
use crate::store::value::{IdemEntry, IdemResult, Value as _};
use crate::store::{Scan, StoreError, Table, key};

/// How long an answer is remembered: retries of a day cover an outage and a night.
pub const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// Expired answers removed with each new one: more than arrive, so that none pile up.
const PURGED_MAX: usize = 4;

/// The remembered answer to `wanted`.
///
/// # Errors
/// [`RequestError::Conflict`] when the key came with another body; a store error.
pub(crate) fn recall(
    overlay: &Overlay<'_>,
    wanted: &IdempotencyKey,
    fingerprint: u64,
    now_ms: i64,
) -> Result<Option<IdemResult>, RequestError> {
    let entry = overlay.value::<IdemEntry>(Table::Idem, &key::idem(wanted.as_str()))?;
    match entry.filter(|entry| now_ms < entry.expires_at_ms) {
        Some(entry) if entry.fingerprint != fingerprint => Err(RequestError::Conflict),
        entry => Ok(entry.map(|entry| entry.result)),
    }
}

/// What remembering an answer writes; planned before anything is written, so that a failed read changes nothing.
pub(crate) struct Plan {
    removed: Vec<Vec<u8>>,
}

/// Finds what gives way to a new answer: the expired one of the same key, and a few others of its partition.
///
/// # Errors
/// A store error.
pub(crate) fn plan(overlay: &Overlay<'_>, wanted: &IdempotencyKey, now_ms: i64) -> Result<Plan, StoreError> {
    let partition = Partition::of_text(wanted.as_str());
    let mut removed = Vec::new();
    if let Some(old) = overlay.value::<IdemEntry>(Table::Idem, &key::idem(wanted.as_str()))? {
        removed.push(key::idem_expiry(partition, old.expires_at_ms, wanted.as_str()));
    }
    let (from, to) = (key::idem_expiry(partition, 0, ""), key::idem_expiry(partition, now_ms, ""));
    let mut expired = Vec::new();
    overlay.view().scan(Table::Idem, &from, &to, &mut |at, _| {
        expired.push(at.to_vec());
        Ok(if expired.len() < PURGED_MAX { Scan::Continue } else { Scan::Stop })
    })?;
    for at in expired {
        // Gone in this batch already: its key may carry a new answer.
        let Some(_) = overlay.get(Table::Idem, &at)? else { continue };
        let text = String::from_utf8_lossy(&at[key::IDEM_EXPIRY_PREFIX_BYTES..]).into_owned();
        if text != wanted.as_str() {
            removed.push(key::idem(&text));
            removed.push(at);
        }
    }
    Ok(Plan { removed })
}

/// Remembers an answer.
pub(crate) fn remember(
    overlay: &mut Overlay<'_>,
    plan: Plan,
    wanted: &IdempotencyKey,
    fingerprint: u64,
    result: IdemResult,
    now_ms: i64,
) {
    for gone in plan.removed {
        overlay.delete(Table::Idem, &gone);
    }
    let expires_at_ms = now_ms.saturating_add(KEPT_MS);
    let entry = IdemEntry { fingerprint, expires_at_ms, result };
    overlay.put(Table::Idem, &key::idem(wanted.as_str()), entry.to_bytes());
    let partition = Partition::of_text(wanted.as_str());
    overlay.put(Table::Idem, &key::idem_expiry(partition, expires_at_ms, wanted.as_str()), Vec::new());
}
