//! Pressure stall information (kernel documentation, accounting/psi).

use std::path::Path;

/// Where this machine's own pressure is found: a container's in its cgroup, a machine's in `/proc`.
const PLACES: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/proc/pressure"];

/// One resource's `some` line: at least one task waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalled {
    /// The share of the last ten seconds, in percent.
    pub avg10_percent: f32,
    /// All stalled time, in microseconds.
    pub total_us: u64,
}

/// Reads the pressure of `resource`: `cpu`, `memory` or `io`. None where the kernel does not tell it.
pub fn read(resource: &str) -> Option<Stalled> {
    PLACES.iter().find_map(|place| {
        let file = if *place == "/proc/pressure" { resource.to_owned() } else { format!("{resource}.pressure") };
        parse(&std::fs::read_to_string(Path::new(place).join(file)).ok()?)
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn parse(text: &str) -> Option<Stalled> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    Some(Stalled { avg10_percent: value("avg10")?.parse().ok()?, total_us: value("total")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_some_line_counts() {
        let text = "some avg10=30.91 avg60=9.72 avg300=12.14 total=176552024\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse(text), Some(Stalled { avg10_percent: 30.91, total_us: 176_552_024 }));
        assert_eq!(parse(""), None);
    }
}
