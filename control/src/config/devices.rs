//! Which of a user's devices may be online together.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::route::policy::{self, Policy};

/// The `[control.devices]` table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    /// Default `all`.
    pub policy: PolicyName,
    /// Groups of `one_per_group`; kinds of no group exclude nobody. A kind is in one group at most. Default phones, desktops
    /// and web.
    pub groups: Vec<Vec<Kind>>,
    /// Who gives way, also at `sessions_max`. Default `takeover`.
    pub conflict: Conflict,
    /// Sessions of one user. Default 256; 1 to 10,000.
    pub sessions_max: u32,
}

/// How many devices of a user may be online.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// All.
    All,
    /// One of each kind.
    OnePerKind,
    /// One of each group of kinds.
    OnePerGroup,
    /// One.
    One,
}

/// As `gimbal.v1.DeviceKind`, with its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// Of devices that say nothing, as those first seen by a token of others.
    Unspecified = 0,
    /// Android.
    Android = 1,
    /// iOS.
    Ios = 2,
    /// Windows.
    Windows = 3,
    /// macOS.
    Macos = 4,
    /// A browser.
    Web = 5,
}

/// Who gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// Who is online; at `sessions_max` the oldest session.
    Takeover,
    /// The newcomer.
    Refuse,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            policy: PolicyName::All,
            groups: vec![vec![Kind::Android, Kind::Ios], vec![Kind::Windows, Kind::Macos], vec![Kind::Web]],
            conflict: Conflict::Takeover,
            sessions_max: Policy::SESSIONS_MAX as u32,
        }
    }
}

impl Devices {
    /// The rule that the names stand for.
    pub fn policy(&self) -> Policy {
        let groups: Vec<Vec<u8>> =
            self.groups.iter().map(|group| group.iter().map(|kind| *kind as u8).collect()).collect();
        let policy = match self.policy {
            PolicyName::All => Policy::all(),
            PolicyName::OnePerKind => Policy::one_per_kind(),
            PolicyName::OnePerGroup => Policy::one_per_group(&groups),
            PolicyName::One => Policy::one(),
        };
        let conflict = match self.conflict {
            Conflict::Takeover => policy::Conflict::Takeover,
            Conflict::Refuse => policy::Conflict::Refuse,
        };
        policy.with_conflict(conflict).with_sessions_max(self.sessions_max as usize)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let kinds: Vec<Kind> = self.groups.iter().flatten().copied().collect();
        let is_twice = (1..kinds.len()).any(|at| kinds[..at].contains(&kinds[at]));
        let is_without = self.policy == PolicyName::OnePerGroup && kinds.is_empty();
        let rules = [
            (!is_twice, "devices.groups", "must have each kind once at most"),
            (!is_without, "devices.groups", "must have a kind for devices.policy \"one_per_group\""),
            ((1..=10_000).contains(&self.sessions_max), "devices.sessions_max", "must be 1 to 10,000"),
        ];
        super::first_broken(&rules)
    }
}

#[cfg(test)]
mod tests {
    use gimbal_rpc::v1::DeviceKind;

    use super::*;

    #[test]
    fn kinds_have_the_numbers_of_the_api() {
        for (ours, of_api) in [
            (Kind::Unspecified, DeviceKind::Unspecified),
            (Kind::Android, DeviceKind::Android),
            (Kind::Ios, DeviceKind::Ios),
            (Kind::Windows, DeviceKind::Windows),
            (Kind::Macos, DeviceKind::Macos),
            (Kind::Web, DeviceKind::Web),
        ] {
            assert_eq!(i32::from(ours as u8), of_api as i32);
            assert!(usize::from(ours as u8) < policy::KINDS);
        }
    }

    #[test]
    fn groups_that_mean_nothing_are_refused() {
        let of = |groups: Vec<Vec<Kind>>, policy| {
            let devices = Devices { groups, policy, ..Devices::default() };
            devices.check().err().map(|error| error.to_string())
        };
        assert_eq!(Devices::default().check().err().map(|error| error.to_string()), None);
        let twice = of(vec![vec![Kind::Web], vec![Kind::Web]], PolicyName::All).unwrap();
        assert_eq!(twice, "control.devices.groups must have each kind once at most");
        assert!(of(vec![vec![]], PolicyName::OnePerGroup).is_some());
        assert_eq!(of(vec![], PolicyName::OnePerKind), None);
        let devices = Devices { sessions_max: 0, ..Devices::default() };
        assert!(devices.check().is_err());
    }
}
