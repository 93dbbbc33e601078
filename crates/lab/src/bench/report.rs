//! What a benchmark found: rows, goals, the table for people and the file for programs.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::paths;

/// A figure out of one or more runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// The median of the runs.
    pub value: f64,
    /// Half the distance between the smallest and the largest run; `None` for a single run.
    pub spread: Option<f64>,
}

impl Figures {
    /// Of one run.
    pub fn one(value: f64) -> Self {
        Self { value, spread: None }
    }

    /// Of several runs.
    ///
    /// # Errors
    /// There are none.
    pub fn of(runs: &[f64]) -> Result<Self> {
        let value = quantile(runs, 50)?;
        let spread = (runs.len() > 1).then(|| {
            let (low, high) = runs.iter().fold((value, value), |(low, high), run| (low.min(*run), high.max(*run)));
            (high - low) / 2.0
        });
        Ok(Self { value, spread })
    }
}

/// The smallest of `values` that is not below `percent` of them (nearest rank); between the two in the middle for the median.
///
/// # Errors
/// There are none.
pub fn quantile(values: &[f64], percent: usize) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().context("nothing was measured");
    let count = sorted.len();
    if percent == 50 && count > 0 && count.is_multiple_of(2) {
        return Ok((at(count / 2 - 1)? + at(count / 2)?) / 2.0);
    }
    at((count * percent).div_ceil(100).saturating_sub(1))
}

#[derive(Debug, Serialize)]
struct Row {
    case: String,
    subject: String,
    metric: String,
    unit: &'static str,
    value: f64,
    spread: Option<f64>,
    ratio_to: Option<String>,
    ratio: Option<f64>,
}

/// A figure that is to be reached. All goals are upper bounds.
#[derive(Debug, Serialize)]
struct Goal {
    what: String,
    goal: f64,
    got: f64,
    met: bool,
}

/// The results of one benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    name: &'static str,
    machine: String,
    rows: Vec<Row>,
    goals: Vec<Goal>,
}

impl Report {
    /// An empty one.
    pub fn new(name: &'static str, machine: String) -> Self {
        Self { name, machine, rows: Vec::new(), goals: Vec::new() }
    }

    /// Notes a figure.
    pub fn row(&mut self, case: &str, subject: &str, (metric, unit): (&str, &'static str), figures: Figures) {
        let Figures { value, spread } = figures;
        let (case, subject, metric) = (case.to_owned(), subject.to_owned(), metric.to_owned());
        self.rows.push(Row { case, subject, metric, unit, value, spread, ratio_to: None, ratio: None });
    }

    /// Says for each row with this case and metric how it compares to the row of the subject `to`.
    pub fn compare_to(&mut self, case: &str, metric: &str, to: &str) {
        let is_meant = |row: &Row| row.case == case && row.metric == metric;
        let Some(base) = self.rows.iter().find(|row| is_meant(row) && row.subject == to).map(|row| row.value) else {
            return;
        };
        for row in self.rows.iter_mut().filter(|row| is_meant(row) && row.subject != to && base != 0.0) {
            row.ratio_to = Some(to.to_owned());
            row.ratio = Some(row.value / base);
        }
    }

    /// Says for the row of `subject` alone how it compares to the row of the subject `to`.
    pub fn compare_two(&mut self, case: &str, metric: &str, subject: &str, to: &str) {
        let find = |name: &str| {
            self.rows.iter().position(|row| row.case == case && row.metric == metric && row.subject == name)
        };
        let (Some(row), Some(base)) = (find(subject), find(to)) else { return };
        let base = self.rows[base].value;
        if base != 0.0 {
            self.rows[row].ratio_to = Some(to.to_owned());
            self.rows[row].ratio = Some(self.rows[row].value / base);
        }
    }

    /// Says for each row of this subject and metric how it compares to the row of the case `to`.
    pub fn compare_cases(&mut self, subject: &str, metric: &str, to: &str) {
        let is_meant = |row: &Row| row.subject == subject && row.metric == metric;
        let Some(base) = self.rows.iter().find(|row| is_meant(row) && row.case == to).map(|row| row.value) else {
            return;
        };
        for row in self.rows.iter_mut().filter(|row| is_meant(row) && row.case != to && base != 0.0) {
            row.ratio_to = Some(to.to_owned());
            row.ratio = Some(row.value / base);
        }
    }

    /// The ratio of a row, where it was compared.
    pub fn ratio(&self, case: &str, subject: &str, metric: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.case == case && row.subject == subject && row.metric == metric)?.ratio
    }

    /// Notes a goal: `got` is to be at most `goal`. `what` names the unit.
    pub fn goal(&mut self, what: &str, goal: f64, got: f64) {
        self.goals.push(Goal { what: what.to_owned(), goal, got, met: got <= goal });
    }

    /// Writes `target/bench/NAME.json` and returns where that is.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self) -> Result<PathBuf> {
        let folder = paths::target().join("bench");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}\n", self.name, self.machine)?;
        let heads = ["case", "subject", "metric", "value", "spread", "ratio"].map(str::to_owned);
        let lines: Vec<[String; 6]> = std::iter::once(heads).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for [case, subject, metric, value, spread, ratio] in &lines {
            let [a, b, c, d, e, _] = widths;
            let line = format!("{case:<a$}  {subject:<b$}  {metric:<c$}  {value:>d$}  {spread:>e$}  {ratio}");
            writeln!(f, "{}", line.trim_end())?;
        }
        for Goal { what, goal, got, met } in &self.goals {
            let word = if *met { "met" } else { "missed" };
            writeln!(f, "goal {word}: {what}: {}, to be at most {}", short(*got), short(*goal))?;
        }
        Ok(())
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let ratio = self.ratio.zip(self.ratio_to.as_ref()).map(|(ratio, to)| format!("{ratio:.2} × {to}"));
        [
            self.case.clone(),
            self.subject.clone(),
            self.metric.clone(),
            format!("{} {}", short(self.value), self.unit),
            self.spread.map(|spread| format!("± {}", short(spread))).unwrap_or_default(),
            ratio.unwrap_or_default(),
        ]
    }
}

/// A number with three or four digits that mean something.
fn short(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 50).unwrap(), 10.5);
        assert_eq!(quantile(&values, 95).unwrap(), 19.0);
        assert_eq!(quantile(&values, 99).unwrap(), 20.0);
        assert_eq!(quantile(&[7.0], 95).unwrap(), 7.0);
        assert!(quantile(&[], 50).is_err());
    }

    #[test]
    fn the_spread_is_that_of_the_runs() {
        assert_eq!(Figures::of(&[3.0, 1.0, 2.0]).unwrap(), Figures { value: 2.0, spread: Some(1.0) });
        assert_eq!(Figures::of(&[3.0]).unwrap(), Figures::one(3.0));
    }

    #[test]
    fn cases_are_compared_with_one_of_them() {
        let mut report = Report::new("x", "a machine".into());
        for (case, value) in [("small", 2.0), ("large", 3.0)] {
            report.row(case, "ours", ("time", "s"), Figures::one(value));
            report.row(case, "theirs", ("time", "s"), Figures::one(7.0));
        }
        report.compare_cases("ours", "time", "small");
        let ratios: Vec<_> = report.rows.iter().map(|row| (row.ratio, row.ratio_to.as_deref())).collect();
        assert_eq!(ratios, [(None, None), (None, None), (Some(1.5), Some("small")), (None, None)]);
    }

    #[test]
    fn a_table_shows_ratios_and_goals() {
        let mut report = Report::new("x", "a machine".into());
        report.row("small", "ours", ("rate", "req/s"), Figures::of(&[90.0, 110.0, 100.0]).unwrap());
        report.row("small", "theirs", ("rate", "req/s"), Figures::one(50.0));
        report.compare_to("small", "rate", "theirs");
        report.goal("ratio", 0.6, 2.0);
        assert_eq!(
            report.to_string(),
            "x: a machine\n\n\
             case   subject  metric       value  spread  ratio\n\
             small  ours     rate     100 req/s  ± 10.0  2.00 × theirs\n\
             small  theirs   rate    50.0 req/s\n\
             goal missed: ratio: 2.00, to be at most 0.600\n"
        );
    }
}
