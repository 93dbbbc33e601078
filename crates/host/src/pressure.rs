//! Pressure stall information (kernel documentation, accounting/psi).

use std::path::Path;

/// Where this machine's own pressure is found: a container's in its cgroup, a machine's in `/proc`.
const PLACES: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/proc/pressure"];

/// One resource's pressure.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalled {
    /// The part of the last ten seconds in which some task waited, in percent.
    pub avg10_percent: f32,
    /// All time in which some task waited, in microseconds.
    pub some_total_us: u64,
    /// All time in which all tasks waited, in microseconds; 0 where the kernel does not tell it.
    pub full_total_us: u64,
}

/// Reads the pressure of `resource`: `cpu`, `memory` or `io`. None where the kernel does not tell it.
pub fn read(resource: &str) -> Option<Stalled> {
    PLACES.iter().find_map(|place| {
        let file = if *place == "/proc/pressure" { resource.to_owned() } else { format!("{resource}.pressure") };
        parse(&std::fs::read_to_string(Path::new(place).join(file)).ok()?)
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line `full` of the same form.
fn parse(text: &str) -> Option<Stalled> {
    let value = |line: &str, key: &str| {
        let words = text.lines().find_map(|text| text.strip_prefix(line))?;
        words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    Some(Stalled {
        avg10_percent: value("some", "avg10")?.parse().ok()?,
        some_total_us: value("some", "total")?.parse().ok()?,
        full_total_us: value("full", "total").and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_count() {
        let text = "some avg10=30.91 avg60=9.72 avg300=12.14 total=176552024\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=31\n";
        let stalled = Stalled { avg10_percent: 30.91, some_total_us: 176_552_024, full_total_us: 31 };
        assert_eq!(parse(text), Some(stalled));
        assert_eq!(parse(""), None);
    }
}
