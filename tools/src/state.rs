//! What `gimbal client` remembers between two starts: credentials, cursor, next client message id.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Longest phone number or device name in a file name.
const NAME_BYTES_MAX: usize = 32;

/// One device of one phone number on one server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The gRPC address that issued the token; another address needs another sign-in.
    pub grpc: String,
    /// User id.
    pub user: u64,
    /// Device id.
    pub device: u64,
    /// Token: a secret, which is why the file is readable by its owner alone.
    pub token: String,
    /// Highest seq that was shown.
    pub cursor: u64,
    /// Client message id of the next new message.
    pub next_client_message_id: u64,
}

/// The file of one device, locked while this value lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    _lock: File,
    /// What it holds, if it existed.
    pub saved: Option<Saved>,
}

/// `$XDG_STATE_HOME/gimbal`, or `~/.local/state/gimbal`, or `./.gimbal` when there is no home.
pub fn default_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => state.join("gimbal"),
        (None, Some(home)) => home.join(".local/state/gimbal"),
        (None, None) => PathBuf::from(".gimbal"),
    }
}

impl StateFile {
    /// Opens and locks the file of `phone`'s device `name` in `dir`, making the directory when it is missing.
    ///
    /// # Errors
    /// When the names do not fit a file name, the directory is not writable, another process uses the device, or
    /// the file is damaged (its path is named, so that it can be removed).
    pub fn open(dir: &Path, phone: &str, name: &str) -> Result<Self> {
        for part in [phone, name] {
            let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-');
            if part.is_empty() || part.len() > NAME_BYTES_MAX || !plain {
                bail!(
                    "{part:?} is not a phone number or device name (1 to {NAME_BYTES_MAX} letters, digits, + or -)"
                );
            }
        }
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the state directory {}", dir.display()))?;
        let path = dir.join(format!("{phone}.{name}.json"));
        let lock_path = dir.join(format!("{phone}.{name}.lock"));
        let lock =
            private().open(&lock_path).with_context(|| format!("cannot open {}", lock_path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "device {name:?} of {phone} is in use by another gimbal client; give this one another --device NAME"
            );
        }
        let saved = match fs::read(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { path, _lock: lock, saved })
    }

    /// Replaces the file in one step and remembers `saved`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&mut self, saved: Saved) -> Result<()> {
        let next = self.path.with_extension("json.new");
        let write = || -> Result<()> {
            let mut file = private().truncate(true).open(&next)?;
            file.write_all(&serde_json::to_vec_pretty(&saved)?)?;
            fs::rename(&next, &self.path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.saved = Some(saved);
        Ok(())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn sample() -> Saved {
        Saved {
            grpc: "http://h:1".into(),
            user: 1,
            device: 2,
            token: "t".into(),
            cursor: 3,
            next_client_message_id: 4,
        }
    }

    #[test]
    fn what_is_saved_is_found_again_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = StateFile::open(dir.path(), "+4912", "phone").unwrap();
        assert_eq!(file.saved, None);
        file.save(sample()).unwrap();
        let mode = fs::metadata(dir.path().join("+4912.phone.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert_eq!(StateFile::open(dir.path(), "+4912", "phone").unwrap().saved, Some(sample()));
    }

    #[test]
    fn one_device_is_used_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateFile::open(dir.path(), "1", "a").unwrap();
        let refused = StateFile::open(dir.path(), "1", "a").unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
        assert!(StateFile::open(dir.path(), "1", "b").is_ok());
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "a/b", "a.b", "\0"] {
            assert!(StateFile::open(dir.path(), bad, "a").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("1.a.json"), "{").unwrap();
        let error = StateFile::open(dir.path(), "1", "a").unwrap_err();
        assert!(error.to_string().contains("1.a.json is damaged"), "{error}");
    }
}
