//! What was done to a host from outside and still holds, whatever the host is made of.

use std::fmt;

use crate::cgroup::Pace;

/// What holds of a host that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Its processes are stopped.
    pub frozen: bool,
    /// Its cables are pulled.
    pub cut: bool,
    /// The CPU time that it is limited to, in percent of one core.
    pub pace: Option<u32>,
    /// Whoever touches its shared storage waits.
    pub hung: bool,
    /// Its shared storage was unmounted.
    pub lost: bool,
}

impl Faults {
    /// What is left once its power was taken: the pace alone.
    pub fn after_kill(self) -> Self {
        Self { pace: self.pace, ..Self::default() }
    }

    /// As it is, at another pace.
    pub fn at(self, pace: Pace) -> Self {
        let pace = match pace {
            Pace::Max => None,
            Pace::Percent(percent) => Some(percent),
        };
        Self { pace, ..self }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frozen, cut, pace, hung, lost } = *self;
        let named = |is: bool, name: &str| is.then(|| name.to_owned());
        let pace = pace.map(|percent| format!("paced {percent}%"));
        let parts = [
            named(frozen, "frozen"),
            named(cut, "cut"),
            pace,
            named(hung, "storage hung"),
            named(lost, "storage lost"),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "running" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_all_that_holds() {
        assert_eq!(Faults::default().to_string(), "running");
        let faults = Faults { frozen: true, lost: true, ..Faults::default() }.at(Pace::Percent(10));
        assert_eq!(faults.to_string(), "frozen, paced 10%, storage lost");
        assert_eq!(faults.after_kill().to_string(), "paced 10%");
        assert_eq!(faults.after_kill().at(Pace::Max), Faults::default());
    }
}
