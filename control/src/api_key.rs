//! The keys of backends, administrators and remote gateways: by name, each with what it may do.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;

use crate::error::RequestError;

/// What a key may do: a service, or the part of one that only looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Scope {
    /// Registrations and revocations.
    #[serde(rename = "accounts")]
    Accounts,
    /// Pushes to users and to all.
    #[serde(rename = "messages")]
    Messages,
    /// Publishes and counts.
    #[serde(rename = "rooms")]
    Rooms,
    /// Friends and blocks of any user.
    #[serde(rename = "friends")]
    Friends,
    /// The event stream, and who is online.
    #[serde(rename = "events")]
    Events,
    /// Any group.
    #[serde(rename = "groups")]
    Groups,
    /// What an administrator may look at.
    #[serde(rename = "admin:read")]
    AdminRead,
    /// What an administrator may do; with it goes [`Scope::AdminRead`].
    #[serde(rename = "admin")]
    Admin,
    /// Linking up as a remote gateway.
    #[serde(rename = "link")]
    Link,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 9] = [
        Self::Accounts,
        Self::Messages,
        Self::Rooms,
        Self::Friends,
        Self::Events,
        Self::Groups,
        Self::AdminRead,
        Self::Admin,
        Self::Link,
    ];

    /// As in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Messages => "messages",
            Self::Rooms => "rooms",
            Self::Friends => "friends",
            Self::Events => "events",
            Self::Groups => "groups",
            Self::AdminRead => "admin:read",
            Self::Admin => "admin",
            Self::Link => "link",
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scopes(u16);

impl Scopes {
    /// What the one backend key may do.
    pub const BACKEND: Self = Self::of(&[
        Scope::Accounts,
        Scope::Messages,
        Scope::Rooms,
        Scope::Friends,
        Scope::Events,
        Scope::Groups,
    ]);
    /// What the one administrators' key may do.
    pub const ADMIN: Self = Self::of(&[Scope::Admin]);
    /// What the one key of remote gateways may do.
    pub const LINK: Self = Self::of(&[Scope::Link]);

    /// All of these, and what goes with them.
    pub const fn of(scopes: &[Scope]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < scopes.len() {
            bits |= 1 << scopes[at] as u8;
            at += 1;
        }
        if bits & (1 << Scope::Admin as u8) != 0 {
            bits |= 1 << Scope::AdminRead as u8;
        }
        Self(bits)
    }

    /// Whether `scope` is one of them.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether any of `other` is one of them.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Metadata that says what the certificate of a caller's connection stands for. Callers cannot set it: whatever comes under
/// this name is removed before a handler sees it.
pub(crate) const CERTIFIED: &str = "gimbal-certified-role";

/// What a client certificate stands for in place of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// [`Scopes::BACKEND`].
    Backend,
    /// [`Scopes::ADMIN`].
    Admin,
    /// [`Scopes::LINK`].
    Gateway,
}

impl Role {
    /// As configuration and [`CERTIFIED`] name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Admin => "admin",
            Self::Gateway => "gateway",
        }
    }

    /// What the certificate of the connection stands for, if it stands for anything.
    fn certified(metadata: &MetadataMap) -> Option<Self> {
        let name = metadata.get(CERTIFIED)?;
        [Self::Backend, Self::Admin, Self::Gateway].into_iter().find(|role| name == role.name())
    }

    const fn scopes(self) -> Scopes {
        match self {
            Self::Backend => Scopes::BACKEND,
            Self::Admin => Scopes::ADMIN,
            Self::Gateway => Scopes::LINK,
        }
    }
}

/// SHA-256 of a configured key; the key itself is not kept.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of a key as its file holds it.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// In constant time.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// A key's name, or a certificate's role.
pub type KeyName = Arc<str>;

/// A key that was read.
#[derive(Clone, Debug)]
pub(crate) struct NamedKey {
    pub(crate) name: KeyName,
    pub(crate) hash: KeyHash,
    pub(crate) scopes: Scopes,
}

/// All keys, with how often each was shown. Clones share all of it.
#[derive(Clone, Debug)]
pub struct Keys {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    entries: ArcSwap<Box<[Entry]>>,
    unknown: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    key: NamedKey,
    uses: Arc<Uses>,
}

#[derive(Debug, Default)]
struct Uses {
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl Keys {
    pub(crate) fn new(keys: Vec<NamedKey>) -> Self {
        let entries = keys.into_iter().map(|key| Entry { key, uses: Arc::default() }).collect();
        let shared = Shared { entries: ArcSwap::from_pointee(entries), unknown: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// From now on the keys of `newer` count, for all clones; those of a name that was known go on with its counts.
    pub(crate) fn replace(&self, newer: &Self) {
        let old = self.shared.entries.load();
        let entry = |newer: &Entry| {
            let known = old.iter().find(|known| known.key.name == newer.key.name);
            Entry {
                key: newer.key.clone(),
                uses: known.map_or_else(Arc::default, |known| Arc::clone(&known.uses)),
            }
        };
        let entries = newer.shared.entries.load().iter().map(entry).collect();
        self.shared.entries.store(Arc::new(entries));
    }

    /// Whether any key has `scope`.
    pub fn serve(&self, scope: Scope) -> bool {
        self.shared.entries.load().iter().any(|entry| entry.key.scopes.has(scope))
    }

    /// Checks the certificate of the connection, if it stands for something, or else `authorization: Bearer <key>`, and gives
    /// the role's or the key's name; counts keys either way.
    ///
    /// # Errors
    /// [`RequestError::NotSignedIn`] without a key or with one that nobody has;
    /// [`RequestError::NoScope`] with a key or a certificate that may not do this.
    pub fn check(&self, scope: Scope, metadata: &MetadataMap) -> Result<KeyName, RequestError> {
        self.check_any(&[scope], metadata)
    }

    /// As [`Self::check`], for what several scopes open: each by itself.
    ///
    /// # Errors
    /// As there; the first scope is named.
    pub fn check_any(&self, any: &[Scope], metadata: &MetadataMap) -> Result<KeyName, RequestError> {
        if let Some(role) = Role::certified(metadata) {
            if any.iter().any(|&scope| role.scopes().has(scope)) {
                return Ok(role.name().into());
            }
            if bearer(metadata).is_none() {
                return Err(RequestError::NoScope { scope: any[0].name() });
            }
        }
        let scopes = any.iter().fold(Scopes::default(), |all, scope| all.with(Scopes(1 << *scope as u8)));
        let entries = self.shared.entries.load();
        let found = bearer(metadata).and_then(|shown| find(&entries, scopes, shown));
        let Some(entry) = found else {
            self.shared.unknown.fetch_add(1, Ordering::Relaxed);
            return Err(RequestError::NotSignedIn);
        };
        if entry.key.scopes.meets(scopes) {
            entry.uses.allowed.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::clone(&entry.key.name))
        } else {
            entry.uses.denied.fetch_add(1, Ordering::Relaxed);
            Err(RequestError::NoScope { scope: any.first().map_or("", |scope| scope.name()) })
        }
    }

    /// How often each key was let in and refused, for metrics: key's name, outcome, count.
    pub(crate) fn counts(&self) -> Vec<(String, &'static str, u64)> {
        let unknown = ("unknown".to_owned(), "refused", self.shared.unknown.load(Ordering::Relaxed));
        let of = |entry: &Entry| {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let name = || entry.key.name.to_string();
            [(name(), "allowed", count(&entry.uses.allowed)), (name(), "no_scope", count(&entry.uses.denied))]
        };
        self.shared.entries.load().iter().flat_map(of).chain([unknown]).collect()
    }
}

/// All are compared, as hashes and each in constant time, so that time tells nothing about which one came close. Of
/// equal ones, as there may be with `--dev`, one with the scope.
fn find<'a>(entries: &'a [Entry], scopes: Scopes, shown: &str) -> Option<&'a Entry> {
    let shown = KeyHash::of(shown);
    let mut found: Option<&Entry> = None;
    for entry in entries {
        let is_shown = entry.key.hash.same(&shown);
        if is_shown && found.is_none_or(|found| !found.key.scopes.meets(scopes)) {
            found = Some(entry);
        }
    }
    found
}

/// Whether a bearer key is shown at all, or a certificate that stands for something.
pub fn has_bearer(metadata: &MetadataMap) -> bool {
    metadata.contains_key("authorization") || metadata.contains_key(CERTIFIED)
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, key: &str, scopes: &[Scope]) -> NamedKey {
        NamedKey { name: name.into(), hash: KeyHash::of(key), scopes: Scopes::of(scopes) }
    }

    fn shown(value: &str) -> MetadataMap {
        let mut map = MetadataMap::new();
        map.insert("authorization", value.parse().unwrap());
        map
    }

    #[test]
    fn a_key_opens_what_its_scopes_say_and_nothing_else() {
        let keys = Keys::new(vec![
            key("orders", "o", &[Scope::Messages]),
            key("watch", "w", &[Scope::AdminRead]),
            key("root", "r", &[Scope::Admin]),
        ]);
        let check = |scope, value: &str| keys.check(scope, &shown(value));
        assert_eq!(check(Scope::Messages, "Bearer o"), Ok("orders".into()));
        assert_eq!(check(Scope::AdminRead, "bearer w"), Ok("watch".into()));
        assert_eq!(check(Scope::AdminRead, "Bearer r"), Ok("root".into()), "who may do it may look at it");
        for (scope, value) in
            [(Scope::Rooms, "Bearer o"), (Scope::Admin, "Bearer w"), (Scope::Link, "Bearer r")]
        {
            assert_eq!(check(scope, value), Err(RequestError::NoScope { scope: scope.name() }), "{value}");
        }
        for wrong in ["Bearer c", "Bearer ", "Basic o", "o", "", "Bearer O", "Bearer oo"] {
            assert_eq!(check(Scope::Messages, wrong), Err(RequestError::NotSignedIn), "{wrong:?}");
        }
        assert_eq!(keys.check(Scope::Messages, &MetadataMap::new()), Err(RequestError::NotSignedIn));
        let both = [Scope::Rooms, Scope::Admin];
        assert_eq!(keys.check_any(&both, &shown("Bearer r")), Ok("root".into()));
        let looks = keys.check_any(&both, &shown("Bearer w"));
        assert_eq!(looks, Err(RequestError::NoScope { scope: "rooms" }), "to look is not to do");
        let count = |name: &str, outcome: &str| {
            let found = keys.counts().into_iter().find(|count| count.0 == name && count.1 == outcome);
            found.unwrap().2
        };
        assert_eq!((count("orders", "allowed"), count("orders", "no_scope")), (1, 1));
        assert_eq!((count("root", "allowed"), count("unknown", "refused")), (2, 8));
    }

    #[test]
    fn equal_keys_open_what_any_of_them_does() {
        let keys =
            Keys::new(vec![key("a", "dev", &[Scope::Rooms]), key("b", "dev", &[Scope::Admin, Scope::Link])]);
        for (scope, name) in [(Scope::Rooms, "a"), (Scope::Admin, "b"), (Scope::Link, "b")] {
            assert_eq!(keys.check(scope, &shown("Bearer dev")), Ok(name.into()));
        }
        let refused = keys.check(Scope::Messages, &shown("Bearer dev"));
        assert_eq!(refused, Err(RequestError::NoScope { scope: "messages" }));
    }

    #[test]
    fn neither_key_nor_hash_is_ever_printed() {
        let keys = Keys::new(vec![key("orders", "o", &[Scope::Messages])]);
        let hash = hex::encode(Sha256::digest("o"));
        assert!(!format!("{keys:?}").contains(&hash));
        assert!(format!("{keys:?}").contains("orders"));
    }

    #[test]
    fn names_of_scopes_are_those_of_the_configuration() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_string(&scope).unwrap(), format!("{:?}", scope.name()));
        }
    }
}
