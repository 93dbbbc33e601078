//! What processes of a host have cost so far: CPU time and memory, as the host's kernel counts them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Host;

/// Units of CPU time in `/proc/PID/stat` a second: USER_HZ, which is part of Linux's interface (proc(5), time(7)).
const USER_HZ: f64 = 100.0;

/// How long a look at hundreds of processes may take.
const LOOK_LIMIT: Duration = Duration::from_secs(120);

/// The sums over some processes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// How many processes.
    pub processes: u32,
    /// CPU time in user and kernel mode since they began, in seconds.
    pub cpu_s: f64,
    /// Resident set, in MiB: what several share counts in each.
    pub rss_mib: f64,
    /// Proportional set, in MiB: what n share counts 1/n in each.
    pub pss_mib: f64,
}

/// Sums up over the processes whose numbers `list`, a command of shell, writes.
///
/// # Errors
/// The command failed, or there is no such process.
pub fn cost(host: &Host<'_>, list: &str) -> Result<Cost> {
    // A process that ends during the look counts with what was seen of it.
    let line = format!(
        r#"for p in $({list}); do
             sed 's/.*) //' /proc/$p/stat | awk '{{ print "cpu", $12 + $13 }}'
             awk '/^(Rss|Pss):/ {{ print $1, $2 }}' /proc/$p/smaps_rollup
           done 2>/dev/null | awk '{{ sum[$1] += $2; n += $1 == "cpu" }} END {{ print n + 0, sum["cpu"] + 0, sum["Rss:"] + 0, sum["Pss:"] + 0 }}'"#
    );
    let text = host.run_for(LOOK_LIMIT, &line)?.text()?;
    let sums: Vec<f64> = text.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| text.clone())?;
    let [processes, ticks, rss_kib, pss_kib] = sums[..] else { anyhow::bail!("not four sums: {text:?}") };
    ensure!(processes > 0.0, "no process is named by `{list}` on {}", host.name());
    Ok(Cost {
        processes: processes as u32,
        cpu_s: ticks / USER_HZ,
        rss_mib: rss_kib / 1024.0,
        pss_mib: pss_kib / 1024.0,
    })
}

/// The main process of a service.
///
/// # Errors
/// See [`cost`].
pub fn unit(host: &Host<'_>, unit: &str) -> Result<Cost> {
    cost(host, &format!("systemctl show --property MainPID --value {unit} | grep -vx 0"))
}
