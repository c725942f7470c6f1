//! Figures of another process from `/proc`, and limits of our own.

use std::{fs, io, str::FromStr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// One reading of a process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProcessFigures {
    /// CPU time of all living threads, nanoseconds (`task/*/schedstat`, first field).
    pub cpu_ns: u64,
    /// The same for each thread name.
    pub threads: Vec<ThreadFigures>,
    /// Resident memory, bytes (`VmRSS`).
    pub rss_bytes: u64,
    /// Resident anonymous memory, bytes (`RssAnon`).
    pub rss_anon_bytes: u64,
    /// Voluntary context switches of all living threads.
    pub voluntary_switches: u64,
    /// Involuntary context switches of all living threads.
    pub involuntary_switches: u64,
    /// CPU time of each living thread by its id, nanoseconds.
    #[serde(skip)]
    pub tasks: Vec<(u32, u64)>,
}

/// Threads of one name, summed.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ThreadFigures {
    /// Name as the kernel shows it (at most 15 bytes), digits at its end removed.
    pub name: String,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

impl ProcessFigures {
    /// Reads `/proc/PID`. Threads that end meanwhile are left out.
    ///
    /// # Errors
    /// When there is no such process, or it may not be read.
    pub fn read(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut figures = Self {
            rss_bytes: field::<u64>(&status, "VmRSS:").unwrap_or(0) * 1024,
            rss_anon_bytes: field::<u64>(&status, "RssAnon:").unwrap_or(0) * 1024,
            ..Self::default()
        };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            figures.add_task(&task?.path());
        }
        figures.threads.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(figures)
    }

    fn add_task(&mut self, task: &std::path::Path) {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let (schedstat, status, comm) = (read("schedstat"), read("status"), read("comm"));
        let cpu_ns = schedstat.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        self.cpu_ns += cpu_ns;
        let id = task.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        self.tasks.extend(id.map(|id| (id, cpu_ns)));
        self.voluntary_switches += field::<u64>(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        self.involuntary_switches += field::<u64>(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        let name = comm.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        match self.threads.iter_mut().find(|thread| thread.name == name) {
            Some(thread) => thread.cpu_ns += cpu_ns,
            None => self.threads.push(ThreadFigures { name, cpu_ns }),
        }
    }

    /// What was spent since `before`; memory is as it stands now.
    pub fn since(&self, before: &Self) -> Self {
        let cpu_before = |name: &str| before.threads.iter().find(|t| t.name == name).map_or(0, |t| t.cpu_ns);
        let threads = self.threads.iter().map(|thread| ThreadFigures {
            name: thread.name.clone(),
            cpu_ns: thread.cpu_ns.saturating_sub(cpu_before(&thread.name)),
        });
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            threads: threads.collect(),
            rss_bytes: self.rss_bytes,
            rss_anon_bytes: self.rss_anon_bytes,
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(before.involuntary_switches),
            tasks: self
                .tasks
                .iter()
                .map(|&(id, cpu_ns)| (id, cpu_ns.saturating_sub(before.task(id))))
                .collect(),
        }
    }

    fn task(&self, id: u32) -> u64 {
        self.tasks.iter().find(|(other, _)| *other == id).map_or(0, |&(_, cpu_ns)| cpu_ns)
    }

    /// CPU time of the thread that used most, nanoseconds.
    pub fn busiest_ns(&self) -> u64 {
        self.tasks.iter().map(|&(_, cpu_ns)| cpu_ns).max().unwrap_or(0)
    }

    /// Adds the figures of another process.
    pub fn add(&mut self, other: &Self) {
        self.cpu_ns += other.cpu_ns;
        self.rss_bytes += other.rss_bytes;
        self.rss_anon_bytes += other.rss_anon_bytes;
        self.voluntary_switches += other.voluntary_switches;
        self.involuntary_switches += other.involuntary_switches;
        self.tasks.extend(&other.tasks);
        for thread in &other.threads {
            match self.threads.iter_mut().find(|known| known.name == thread.name) {
                Some(known) => known.cpu_ns += thread.cpu_ns,
                None => self.threads.push(thread.clone()),
            }
        }
    }
}

/// Memory of all TCP sockets of this network namespace, bytes (`mem` in `/proc/net/sockstat`, in pages).
pub fn tcp_bytes() -> Option<u64> {
    tcp_pages(&fs::read_to_string("/proc/net/sockstat").ok()?).map(|pages| pages * PAGE_BYTES)
}

/// Kernel objects of the whole machine that cannot be given back on demand, bytes (`SUnreclaim` in `/proc/meminfo`).
pub fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// CPU time that the host of this virtual machine has kept for others since it started, over all CPUs, seconds (`steal` in
/// `/proc/stat`, in hundredths on every architecture we run on).
pub fn stolen_s() -> Option<f64> {
    stolen(&fs::read_to_string("/proc/stat").ok()?)
}

fn stolen(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    Some(line.split_whitespace().nth(7)?.parse::<u64>().ok()? as f64 / 100.0)
}

/// Bytes of a page on both architectures we run on.
const PAGE_BYTES: u64 = 4096;

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// The most files process `pid` may open, its hard limit; `None` when it may not be read.
pub fn open_files_max(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// CPUs process `pid` may run on, as the kernel lists them.
pub fn allowed_cores(pid: u32) -> Option<String> {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "Cpus_allowed_list:")
}

/// The command line of process `pid`; empty when it may not be read.
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The first word after the line that starts with `name`.
fn field<T: FromStr>(text: &str, name: &str) -> Option<T> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Raises the soft limit of open files to the hard one; returns it.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Kernel release, as `uname -r` prints it.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// CPUs this process may run on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_memory_and_threads() {
        let figures = ProcessFigures::read(std::process::id()).expect("we may read ourselves");
        assert!(figures.rss_anon_bytes > 0 && figures.rss_bytes >= figures.rss_anon_bytes);
        assert!(!figures.threads.is_empty());
        assert_eq!(figures.since(&figures).cpu_ns, 0);
    }

    #[test]
    fn figures_of_two_processes_add_up() {
        let one = ProcessFigures::read(std::process::id()).expect("we may read ourselves");
        let mut two = one.clone();
        two.add(&one);
        assert_eq!((two.cpu_ns, two.rss_bytes), (one.cpu_ns * 2, one.rss_bytes * 2));
        assert_eq!(two.threads.len(), one.threads.len());
        assert_eq!(two.busiest_ns(), one.busiest_ns());
    }

    #[test]
    fn socket_memory_is_found_in_its_line() {
        let text = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 1 alloc 6 mem 12\nUDP: inuse 1 mem 7\n";
        assert_eq!(tcp_pages(text), Some(12));
        assert_eq!(tcp_pages("UDP: mem 7"), None);
    }

    #[test]
    fn stolen_time_is_the_eighth_of_all_cpus() {
        let text = "cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(stolen(text), Some(2.5));
        assert_eq!(stolen("cpu  1 2 3"), None);
        assert!(stolen_s().is_some());
    }

    #[test]
    fn our_own_limits_and_words_can_be_read() {
        let pid = std::process::id();
        assert!(open_files_max(pid).is_some_and(|files| files > 0));
        assert!(allowed_cores(pid).is_some() && !command_line(pid).is_empty());
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert!(ProcessFigures::read(u32::MAX).is_err());
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\nVmRSS:\t  12 kB\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(5));
        assert_eq!(field(status, "VmRSS:"), Some(12));
        assert_eq!(field::<u64>(status, "RssAnon:"), None);
    }
}
