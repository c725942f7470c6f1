//! What the operating system grants this process, where the standard library does not say.

use std::io;

/// A resource limit: what applies now, and how far the process may raise it by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    /// In force; `u64::MAX` is unlimited.
    pub(crate) soft: u64,
    /// Upper bound of `soft`.
    pub(crate) hard: u64,
}

/// Which limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
    /// RLIMIT_NOFILE: descriptors.
    Files,
    /// RLIMIT_MEMLOCK: bytes; rings count against it.
    LockedMemory,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::Files => libc::RLIMIT_NOFILE,
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
        }
    }
}

/// The limit as it stands.
///
/// # Errors
/// As getrlimit(2).
pub(crate) fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours and outlives the call.
    if unsafe { libc::getrlimit(resource.number(), &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the soft limit to the hard one and returns what stands then.
///
/// # Errors
/// As getrlimit(2) and setrlimit(2).
pub(crate) fn raise(resource: Resource) -> io::Result<Limit> {
    let now = limit(resource)?;
    if now.soft < now.hard {
        let wanted = libc::rlimit { rlim_cur: now.hard, rlim_max: now.hard };
        // SAFETY: `wanted` is ours and outlives the call.
        if unsafe { libc::setrlimit(resource.number(), &raw const wanted) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    limit(resource)
}

/// Cores that this process may run on, in rising order; never empty on success.
///
/// # Errors
/// As sched_getaffinity(2): `EINVAL` on a machine of more than 1,024 cores.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: a `cpu_set_t` is plain bits, for which zero is a value; the call fills in what its length allows.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        set
    };
    let cores = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: `core` is below CPU_SETSIZE.
    Ok(cores.filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cores_and_descriptors() {
        assert!(!allowed_cores().unwrap().is_empty());
        let files = raise(Resource::Files).unwrap();
        assert!(files.soft == files.hard && files.soft > 0);
    }
}
