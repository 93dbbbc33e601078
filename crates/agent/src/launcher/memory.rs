//! How much memory the machine has left.

use anyhow::Context;

/// MemAvailable of MemTotal in percent (proc_meminfo(5)).
///
/// # Errors
/// `/proc/meminfo` can't be read or understood.
pub fn available_percent() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    percent(&text).context("/proc/meminfo has no MemAvailable or MemTotal")
}

fn percent(meminfo: &str) -> Option<u64> {
    let kib = |key: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(kib("MemAvailable")? * 100 / kib("MemTotal")?.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_is_of_the_whole() {
        let text = "MemTotal:       16384000 kB\nMemFree:          102400 kB\nMemAvailable:    4096000 kB\n";
        assert_eq!(percent(text), Some(25));
        assert_eq!(percent(""), None);
        assert!(available_percent().expect("this machine has memory") <= 100);
    }
}
