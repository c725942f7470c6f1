//! Which sessions of this shard belong to a user.

use gimbal_codec::{SessionKey, UserId};
use hashbrown::HashMap;

/// Sessions by user. A user with one session here, as nearly all, costs one table entry.
#[derive(Debug, Default)]
pub(crate) struct Users {
    first: HashMap<UserId, SessionKey>,
    /// Sessions beyond a user's first.
    more: HashMap<UserId, Vec<SessionKey>>,
}

impl Users {
    /// `key` belongs to `user` from now on.
    pub(crate) fn insert(&mut self, user: UserId, key: SessionKey) {
        if let Some(first) = self.first.get(&user) {
            debug_assert!(*first != key, "{key} is online already");
            self.more.entry(user).or_default().push(key);
        } else {
            self.first.insert(user, key);
        }
    }

    /// `key` no longer belongs to `user`.
    pub(crate) fn remove(&mut self, user: UserId, key: SessionKey) {
        let Some(keys) = self.more.get_mut(&user) else {
            if self.first.get(&user) == Some(&key) {
                self.first.remove(&user);
            }
            return;
        };
        if self.first.get(&user) == Some(&key) {
            let next = keys.pop().expect("an entry in `more` is never empty");
            self.first.insert(user, next);
        } else {
            keys.retain(|other| *other != key);
        }
        if keys.is_empty() {
            self.more.remove(&user);
        }
    }

    /// Appends the sessions of `user` to `out`.
    pub(crate) fn sessions(&self, user: UserId, out: &mut Vec<SessionKey>) {
        let Some(first) = self.first.get(&user) else { return };
        out.push(*first);
        if !self.more.is_empty()
            && let Some(keys) = self.more.get(&user)
        {
            out.extend_from_slice(keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_is_found_until_it_is_removed_whatever_the_order() {
        let user = UserId::new(7);
        let keys: Vec<_> = (0..3).map(SessionKey::from_u64).collect();
        for gone in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut users = Users::default();
            keys.iter().for_each(|key| users.insert(user, *key));
            let mut left = keys.clone();
            for index in gone {
                users.remove(user, keys[index]);
                left.retain(|key| *key != keys[index]);
                let mut found = Vec::new();
                users.sessions(user, &mut found);
                found.sort();
                assert_eq!(found, left);
            }
            assert!(users.first.is_empty() && users.more.is_empty());
        }
    }
}
