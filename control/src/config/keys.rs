//! Keys as they are configured, read and refused when anybody could guess them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, Serializer};

use super::{Config, ConfigError, DEV_KEY, KEY_CHARS_MIN};
use crate::api_key::{KeyHash, Keys, NamedKey, Scope, Scopes};

/// A longer key file is a mistake: some other file.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// Each shown key is compared with all.
const KEYS_MAX: usize = 64;
/// A name is a label of metrics and a word in logs.
const NAME_CHARS_MAX: usize = 32;
/// Names of the keys that have a setting of their own.
const RESERVED: [&str; 5] = ["backend", "admin", "link", "dev", "unknown"];

/// Who may call what: `[[control.api.keys]]`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Keys beside those of the three settings; at most 64.
    pub keys: Vec<ApiKey>,
}

impl Api {
    pub(super) const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// One key of a backend, an administrator or a gateway.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// 1 to 32 of `a-z`, `0-9`, `-`, `_`: stands in logs, metrics and traces for the key.
    pub name: String,
    /// The key itself; or
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// the file whose first line it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// What it may do; at least one.
    pub scopes: Vec<Scope>,
}

/// A text that is never printed, also not when a configuration is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// Reads all keys.
///
/// # Errors
/// [`ConfigError`] names the key at fault, never its text.
pub(super) fn read(config: &Config, dev: bool, warnings: &mut Vec<String>) -> Result<Keys, ConfigError> {
    let mut keys = Vec::new();
    if config.api.keys.len() > KEYS_MAX {
        return Err(ConfigError::Bounds { key: "api.keys", rule: "must be at most 64" });
    }
    for key in &config.api.keys {
        keys.push(read_named(key, dev, warnings)?);
    }
    let covered = |keys: &[NamedKey], scopes| keys.iter().any(|key: &NamedKey| key.scopes.meets(scopes));
    let mut assumed = Scopes::default();
    let settings = [
        ("backend_key_file", "backend", &config.backend_key_file, Scopes::BACKEND, true),
        ("admin_key_file", "admin", &config.admin_key_file, Scopes::ADMIN, true),
        ("link_key_file", "link", &config.link_key_file, Scopes::LINK, false),
    ];
    for (setting, name, path, scopes, is_needed) in settings {
        match path {
            Some(path) => {
                let hash = read_file(setting, path, dev, warnings)?;
                keys.push(NamedKey { name: name.into(), hash, scopes });
            }
            None if covered(&keys, scopes) => {}
            None if dev => {
                warnings.push(format!("--dev: {setting} is not set; the key is {DEV_KEY:?}"));
                assumed = assumed.with(scopes);
            }
            None if is_needed => return Err(ConfigError::KeyMissing { key: setting }),
            None => {}
        }
    }
    if assumed != Scopes::default() {
        keys.push(NamedKey { name: "dev".into(), hash: KeyHash::of(DEV_KEY), scopes: assumed });
    }
    no_twins(&keys, dev)?;
    Ok(Keys::new(keys))
}

fn read_named(key: &ApiKey, dev: bool, warnings: &mut Vec<String>) -> Result<NamedKey, ConfigError> {
    let wrong = |why| ConfigError::ApiKey { name: key.name.clone(), why };
    let is_name = (1..=NAME_CHARS_MAX).contains(&key.name.len())
        && key.name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    if !is_name {
        return Err(wrong("must have a name of 1 to 32 letters a-z, digits, - and _"));
    }
    if RESERVED.contains(&key.name.as_str()) {
        return Err(wrong("has a name that gimbal itself gives"));
    }
    if key.scopes.is_empty() {
        return Err(wrong("has no scopes"));
    }
    let hash = match (&key.key, &key.key_file) {
        (Some(secret), None) => {
            let weak = weakness(&secret.0, dev).map(|_| "is too weak: 16 visible ASCII characters or more");
            weak.map_or_else(|| Ok(KeyHash::of(&secret.0)), |why| Err(wrong(why)))?
        }
        (None, Some(path)) => read_file("api.keys.key_file", path, dev, warnings)?,
        _ => return Err(wrong("must have one of key and key_file")),
    };
    Ok(NamedKey { name: key.name.as_str().into(), hash, scopes: Scopes::of(&key.scopes) })
}

/// Two keys of one name could not be told apart in logs; two names of one key would hide who calls. With `--dev` every key may
/// be "dev".
fn no_twins(keys: &[NamedKey], dev: bool) -> Result<(), ConfigError> {
    for (at, key) in keys.iter().enumerate() {
        for other in &keys[..at] {
            if key.name == other.name {
                return Err(ConfigError::ApiKey { name: key.name.to_string(), why: "is named twice" });
            }
            if !dev && key.hash.same(&other.hash) {
                let names = format!("{} and {}", other.name, key.name);
                return Err(ConfigError::ApiKey { name: names, why: "are the same key" });
            }
        }
    }
    Ok(())
}

fn read_file(
    key: &'static str,
    path: &Path,
    dev: bool,
    warnings: &mut Vec<String>,
) -> Result<KeyHash, ConfigError> {
    let unreadable = |cause| ConfigError::KeyUnreadable { key, path: path.into(), cause };
    let weak = |why| ConfigError::KeyWeak { key, path: path.into(), why };
    if fs::metadata(path).map_err(unreadable)?.len() > KEY_FILE_BYTES_MAX {
        return Err(weak("longer than 4,096 bytes: is this the right file?"));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let secret = text.lines().next().unwrap_or_default().trim();
    match weakness(secret, dev) {
        Some(why) => Err(weak(why)),
        None => {
            warn_if_readable(key, path, warnings);
            Ok(KeyHash::of(secret))
        }
    }
}

fn weakness(secret: &str, dev: bool) -> Option<&'static str> {
    if secret.is_empty() {
        Some("empty")
    } else if !dev && secret == DEV_KEY {
        Some("the development key")
    } else if !dev && secret.chars().count() < KEY_CHARS_MIN {
        Some("shorter than 16 characters")
    } else if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("not made of visible ASCII characters alone, and could not travel in a header")
    } else {
        None
    }
}

/// Of a file that holds a secret.
pub(super) fn warn_if_readable(key: &str, path: &Path, warnings: &mut Vec<String>) {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0) {
        warnings.push(format!("{key}: {path:?} is open to every user of this machine (chmod 600)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    fn named(name: &str, key: &str, scopes: &[Scope]) -> ApiKey {
        ApiKey { name: name.into(), key: Some(Secret(key.into())), key_file: None, scopes: scopes.to_vec() }
    }

    fn with(keys: Vec<ApiKey>) -> Config {
        Config { api: Api { keys }, ..Config::default() }
    }

    fn refusal(keys: Vec<ApiKey>) -> String {
        with(keys).check(false).err().expect("refused").to_string()
    }

    #[test]
    fn listed_keys_stand_in_for_the_settings() {
        let keys = vec![
            named("orders", GOOD, &[Scope::Messages]),
            named("root", "fedcba9876543210", &[Scope::Admin]),
        ];
        let checked = with(keys.clone()).check(false).unwrap();
        assert!(checked.keys.serve(Scope::Messages) && checked.keys.serve(Scope::AdminRead));
        assert!(!checked.keys.serve(Scope::Rooms) && !checked.keys.serve(Scope::Link));
        let refused = with(keys[..1].to_vec()).check(false).err().unwrap().to_string();
        assert!(refused.starts_with("control.admin_key_file is not set"), "{refused}");
        let dev = with(keys[..1].to_vec()).check(true).unwrap();
        assert!(dev.warnings.iter().any(|warning| warning.contains("admin_key_file is not set")));
        assert!(dev.keys.serve(Scope::Admin) && !dev.keys.serve(Scope::Rooms), "a listed key is no addition");
    }

    #[test]
    fn keys_that_anybody_could_guess_or_nobody_could_tell_apart_are_refused() {
        let root = || named("root", "fedcba9876543210", &[Scope::Admin]);
        for (keys, why) in [
            (vec![root(), named("a", "short", &[Scope::Rooms])], "too weak"),
            (vec![root(), named("a", DEV_KEY, &[Scope::Rooms])], "too weak"),
            (vec![root(), named("a", "", &[Scope::Rooms])], "too weak"),
            (vec![root(), named("a", "0123456789 abcdef", &[Scope::Rooms])], "too weak"),
            (vec![root(), named("a", GOOD, &[])], "no scopes"),
            (vec![root(), named("", GOOD, &[Scope::Rooms])], "name of 1 to 32"),
            (vec![root(), named("A b", GOOD, &[Scope::Rooms])], "name of 1 to 32"),
            (vec![root(), named(&"x".repeat(33), GOOD, &[Scope::Rooms])], "name of 1 to 32"),
            (vec![root(), named("backend", GOOD, &[Scope::Rooms])], "gimbal itself gives"),
            (vec![root(), named("root", GOOD, &[Scope::Rooms])], "named twice"),
            (vec![root(), named("a", "fedcba9876543210", &[Scope::Rooms])], "root and a are the same key"),
            (vec![ApiKey { key: None, ..root() }], "one of key and key_file"),
            (vec![ApiKey { key_file: Some("/k".into()), ..root() }], "one of key and key_file"),
        ] {
            let refused = refusal(keys);
            assert!(refused.contains(why), "{why}: {refused}");
            assert!(!refused.contains(GOOD) && !refused.contains("fedcba"), "{refused}");
        }
        let many = (0..=KEYS_MAX).map(|n| named(&format!("k{n}"), &format!("{GOOD}{n}"), &[Scope::Rooms]));
        assert!(refusal(many.collect()).contains("at most 64"));
    }

    #[test]
    fn a_key_in_the_file_itself_is_never_shown_again() {
        let config = with(vec![named("orders", GOOD, &[Scope::Rooms])]);
        assert!(!format!("{config:?}").contains(GOOD));
        assert!(!serde_json::to_string(&config).unwrap().contains(GOOD));
    }
}
