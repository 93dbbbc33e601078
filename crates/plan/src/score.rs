//! One number from a node's pressure: how much of its weight it should get.
//!
//! The input is the kernel's count of stalled time (PSI, `total=`, in microseconds), read each second, so that a change is seen at
//! once and not after the ten seconds of `avg10`; the resource that is shortest decides. For processors that is the time in which
//! some task waited; for memory and storage the time in which all did (`full`), since one task that reads much hurts nobody. Up to [`FREE`] a node gets all of its weight, between [`FREE`] and [`FULL`]
//! less, and an overloaded one nothing new. To keep balancers calm, the number moves in steps of [`STEP_PERCENT`], falls fast,
//! rises slowly, and a node that became overloaded stays so for [`STAY_MS_MIN`] and until its pressure is well below.
//!
//! Deliberately absent: that all nodes are overloaded. A balancer sees that, and then ignores the flag.

/// Pressure, in percent of time, up to which a node is free.
const FREE: f64 = 60.0;
/// Pressure at which a node should get almost nothing.
const FULL: f64 = 95.0;
/// Pressure at which a node becomes overloaded.
const OVERLOADED_FROM: f64 = 90.0;
/// Pressure at which it is so no longer.
const OVERLOADED_UNTIL: f64 = 65.0;
/// The shortest time of overload.
const STAY_MS_MIN: u64 = 5_000;
/// Pressure is smoothed over about this time: one burst of a second is no overload.
const SMOOTHING_MS: f64 = 1_200.0;
/// The number moves in such steps.
const STEP_PERCENT: u8 = 10;
/// Steps down at once.
const STEPS_DOWN_MAX: u8 = 4;
/// Steps up at once: a node that came back is not flooded.
const STEPS_UP_MAX: u8 = 2;

/// Time stalled for want of each resource since the boot, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Some task waited for a processor.
    pub cpu_some_us: u64,
    /// All tasks waited for memory.
    pub memory_full_us: u64,
    /// All tasks waited for storage.
    pub io_full_us: u64,
}

impl Stalls {
    /// The longest of what came since `earlier`.
    fn longest_since(self, earlier: Self) -> u64 {
        let pairs = [
            (self.cpu_some_us, earlier.cpu_some_us),
            (self.memory_full_us, earlier.memory_full_us),
            (self.io_full_us, earlier.io_full_us),
        ];
        pairs.into_iter().map(|(now, before)| now.saturating_sub(before)).max().unwrap_or(0)
    }
}

/// A node's score over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    last: Option<(u64, Stalls)>,
    pressure_percent: f64,
    overloaded_since_ms: Option<u64>,
    percent: u8,
}

impl Default for Score {
    fn default() -> Self {
        Self { last: None, pressure_percent: 0.0, overloaded_since_ms: None, percent: 100 }
    }
}

impl Score {
    /// Takes a reading, at a time in milliseconds of CLOCK_BOOTTIME. Returns how much of its weight the node should get, in percent;
    /// 0 is "nothing new".
    pub fn sample(&mut self, now_ms: u64, stalls: Stalls) -> u8 {
        let Some((last_ms, before)) = self.last.replace((now_ms, stalls)) else { return self.percent };
        let passed_ms = now_ms.saturating_sub(last_ms);
        if passed_ms == 0 {
            return self.percent;
        }
        let stalled_ms = stalls.longest_since(before) as f64 / 1_000.0;
        let now_percent = (100.0 * stalled_ms / passed_ms as f64).min(100.0);
        let keep = (-(passed_ms as f64) / SMOOTHING_MS).exp();
        self.pressure_percent = self.pressure_percent * keep + now_percent * (1.0 - keep);
        self.decide_overload(now_ms);
        self.move_towards(self.target_percent());
        self.percent
    }

    /// The number as it is.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// The smoothed pressure, in percent of time.
    pub fn pressure_percent(&self) -> f64 {
        self.pressure_percent
    }

    /// HAProxy's agent-check line (configuration manual, "agent-check").
    pub fn agent_check_line(&self) -> String {
        format!("up {}%\n", self.percent)
    }

    fn decide_overload(&mut self, now_ms: u64) {
        match self.overloaded_since_ms {
            None if self.pressure_percent >= OVERLOADED_FROM => self.overloaded_since_ms = Some(now_ms),
            Some(since) if now_ms.saturating_sub(since) >= STAY_MS_MIN && self.pressure_percent <= OVERLOADED_UNTIL => {
                self.overloaded_since_ms = None;
            }
            _ => {}
        }
    }

    fn target_percent(&self) -> f64 {
        if self.overloaded_since_ms.is_some() {
            return 0.0;
        }
        let used = ((self.pressure_percent - FREE) / (FULL - FREE)).clamp(0.0, 1.0);
        100.0 - used * 90.0
    }

    fn move_towards(&mut self, target: f64) {
        let step = f64::from(STEP_PERCENT);
        let steps = ((target - f64::from(self.percent)) / step).round();
        // A difference of less than one step is noise, so that the number stays put between two of them.
        let steps = steps.clamp(-f64::from(STEPS_DOWN_MAX), f64::from(STEPS_UP_MAX));
        self.percent = (f64::from(self.percent) + steps * step).clamp(0.0, 100.0) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a pressure for some seconds and returns the score after each.
    fn feed(score: &mut Score, clock: &mut (u64, u64), pressure_percent: u64, seconds: u64) -> Vec<u8> {
        (0..seconds)
            .map(|_| {
                clock.0 += 1_000;
                clock.1 += pressure_percent * 10_000;
                score.sample(clock.0, Stalls { cpu_some_us: clock.1, ..Stalls::default() })
            })
            .collect()
    }

    #[test]
    fn an_overloaded_node_falls_within_four_seconds_and_comes_back() {
        let (mut score, mut clock) = (Score::default(), (0, 0));
        assert!(feed(&mut score, &mut clock, 20, 5).iter().all(|percent| *percent == 100));
        let falling = feed(&mut score, &mut clock, 99, 5);
        assert!(falling[3] <= 60 && falling[4] <= 30, "{falling:?}");
        assert_eq!(feed(&mut score, &mut clock, 99, 5)[4], 0);
        let rising = feed(&mut score, &mut clock, 10, 12);
        assert_eq!(*rising.last().expect("twelve"), 100, "{rising:?}");
        assert!(rising.windows(2).all(|pair| pair[1] <= pair[0] + 20), "it comes back slowly: {rising:?}");
    }

    #[test]
    fn a_burst_of_one_second_and_a_busy_node_change_nothing() {
        let (mut score, mut clock) = (Score::default(), (0, 0));
        for pressure in [30, 30, 75, 30, 55, 50, 60, 40] {
            assert_eq!(feed(&mut score, &mut clock, pressure, 1), [100]);
        }
    }

    #[test]
    fn pressure_around_a_threshold_does_not_flap() {
        let (mut score, mut clock) = (Score::default(), (0, 0));
        feed(&mut score, &mut clock, 80, 10);
        let mut changes = 0;
        let mut last = score.percent();
        for second in 0..60 {
            let now = feed(&mut score, &mut clock, if second % 2 == 0 { 77 } else { 82 }, 1)[0];
            changes += u32::from(now != last);
            last = now;
        }
        assert!(changes <= 2, "{changes} changes in a minute");
    }

    #[test]
    fn any_resource_that_is_short_counts_and_they_do_not_add_up() {
        let stalled = |seconds: u64, [cpu, memory, io]: [u64; 3]| Stalls {
            cpu_some_us: seconds * cpu * 10_000,
            memory_full_us: seconds * memory * 10_000,
            io_full_us: seconds * io * 10_000,
        };
        let after = |percents| {
            let mut score = Score::default();
            (0..20).map(|second| score.sample(second * 1_000, stalled(second, percents))).last()
        };
        assert_eq!(after([99, 0, 0]), Some(0));
        assert_eq!(after([0, 99, 0]), Some(0));
        assert_eq!(after([0, 0, 99]), Some(0));
        assert_eq!(after([50, 50, 50]), Some(100));
    }

    #[test]
    fn a_counter_that_began_anew_is_no_pressure() {
        let mut score = Score::default();
        let cpu = |cpu_some_us| Stalls { cpu_some_us, ..Stalls::default() };
        score.sample(0, cpu(1_000_000_000));
        assert_eq!(score.sample(1_000, cpu(5)), 100);
        assert_eq!(score.agent_check_line(), "up 100%\n");
    }
}
