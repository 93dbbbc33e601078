//! Batches of lines, by hand and by chance.

use super::*;
use crate::logs::line::LEN_MAX;
use proptest::prelude::*;
use std::convert::Infallible;
use std::ops::Range;

fn input(node: &str, text: &str, is_closed: bool) -> Input {
    let segment = format!("{:032x}-1.log", node.len()).parse().unwrap();
    Input { node: node.parse().unwrap(), segment, from: 0, until: text.len() as u64, is_closed }
}

fn line(at: u64, site: &str, text: &str) -> String {
    format!("{}.{:06} {site} 100 7 {text}\n", at / 1_000_000, at % 1_000_000)
}

fn limits(closes_us: u64, merged_to_us: u64) -> Limits {
    Limits { closes_us, merged_to_us, bytes_max: usize::MAX, late_max: usize::MAX }
}

/// Nothing is handed over before the end.
const WHOLE: Pieces = Pieces { site: usize::MAX, all: usize::MAX };

/// Texts by node, each given to the merger in parts of `part` bytes; and what it hands over.
struct Texts<'t> {
    texts: &'t [(&'t str, &'t str, bool)],
    part: usize,
    taken: BTreeMap<String, Vec<u8>>,
}

impl Medium for Texts<'_> {
    type Error = Infallible;

    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Infallible> {
        let (_, text, _) = self.texts.iter().find(|(node, _, _)| *node == input.node.as_str()).unwrap();
        let bytes = &text.as_bytes()[offset as usize..];
        into.extend_from_slice(&bytes[..bytes.len().min(len).min(self.part)]);
        Ok(())
    }

    fn take(&mut self, all: &[SiteLines], these: Range<usize>) -> Result<(), Infallible> {
        for lines in &all[these] {
            self.taken.entry(lines.site.clone()).or_default().extend_from_slice(&lines.ordered);
        }
        Ok(())
    }
}

/// Merges texts, each given to the merger in parts of `part` bytes.
fn merge(texts: &[(&str, &str, bool)], limits: Limits, part: usize) -> Gathered {
    merge_in(texts, limits, part, WHOLE)
}

/// The same in pieces, which are put together again.
fn merge_in(texts: &[(&str, &str, bool)], limits: Limits, part: usize, pieces: Pieces) -> Gathered {
    let inputs: Vec<Input> = texts.iter().map(|(node, text, closed)| input(node, text, *closed)).collect();
    let mut texts = Texts { texts, part, taken: BTreeMap::new() };
    let mut gathered = gather(&inputs, limits, pieces, &mut texts).unwrap();
    for lines in &mut gathered.sites {
        if let Some(mut taken) = texts.taken.remove(&lines.site) {
            taken.append(&mut lines.ordered);
            lines.ordered = taken;
        }
    }
    assert!(texts.taken.is_empty());
    gathered
}

fn text<'g>(gathered: &'g Gathered, site: &str) -> (&'g str, &'g str) {
    let lines = gathered.sites.iter().find(|lines| lines.site == site).unwrap();
    (std::str::from_utf8(&lines.ordered).unwrap(), std::str::from_utf8(&lines.late).unwrap())
}

#[test]
fn lines_are_in_order_of_time_and_known_by_where_they_stood() {
    let one = format!("# segment x of a, begun\n{}{}", line(10, "x.org", "one"), line(30, "y.org", "three"));
    let two = format!("{}{}{}", line(20, "x.org", "two"), line(40, "x.org", "four"), line(99, "x.org", "five"));
    let gathered = merge(&[("a", &one, false), ("bb", &two, false)], limits(50, 0), 7);
    let (a, b) = (format!("{:032x}-1", 1), format!("{:032x}-1", 2));
    let second = line(20, "x.org", "two").len();
    assert_eq!(text(&gathered, "x.org"), (format!("one {a} 24\ntwo {b} 0\nfour {b} {second}\n").as_str(), ""));
    assert_eq!(gathered.merged_to_us, 40);
    assert_eq!(gathered.positions, [one.len() as u64, 2 * second as u64 + 1]);
    let count = gathered.sites[0].traffic[&Day(0)];
    assert_eq!(count, Traffic { requests: 3, sent: 300, received: 21, ..Traffic::default() });
    assert!(gathered.notes.is_empty() && !gathered.ended[0]);
}

#[test]
fn what_comes_late_is_kept_apart() {
    let one =
        format!("{}{}{}", line(10, "x.org", "late"), line(60, "x.org", "ok"), line(55, "x.org", "the clock went back"));
    let gathered = merge(&[("a", &one, false)], limits(100, 50), 100);
    let (ordered, late) = text(&gathered, "x.org");
    assert!(ordered.starts_with("ok ") && ordered.lines().count() == 1, "{ordered}");
    assert!(late.starts_with("late ") && late.contains("\nthe clock went back "), "{late}");
    assert_eq!(gathered.sites[0].late_lines, 2);
}

#[test]
fn what_is_no_line_is_noted() {
    let torn = "1700000000.0000";
    let one = format!("# 3 lines lost\n\0\0\x1b[2J\n{}{torn}", line(10, "x.org", "one"));
    let open = merge(&[("a", &one, false)], limits(100, 0), 100);
    assert_eq!(open.positions, [(one.len() - torn.len()) as u64], "its end may still come");
    let closed = merge(&[("a", &one, true)], limits(100, 0), 100);
    assert_eq!(closed.positions, [one.len() as u64]);
    let notes = String::from_utf8(closed.notes).unwrap();
    let stem = format!("{:032x}-1", 1);
    let at = one.len() - torn.len();
    assert_eq!(
        notes,
        format!(
            "# a {stem} 0: # 3 lines lost\n# a {stem} 15: not a line: \\x00\\x00\\x1b[2J\n# a {stem} {at}: not a line: {torn}\n"
        )
    );
    let ended = merge(&[("a", &format!("{}# end\n", line(10, "x.org", "one")), false)], limits(100, 0), 100);
    assert!(ended.ended[0] && ended.notes.is_empty());
}

#[test]
fn a_line_without_end_is_given_up() {
    let endless = "x".repeat(3 * LEN_MAX);
    let gathered = merge(&[("a", &endless, false)], limits(100, 0), usize::MAX);
    assert!(gathered.positions[0] >= 2 * LEN_MAX as u64 && gathered.notes.len() < 4_096);
}

#[test]
fn what_waits_for_the_end_is_bounded() {
    let late: String = (0..50).map(|number| line(10, "x.org", &format!("late {number}"))).collect();
    let gathered = merge(&[("a", &late, false)], Limits { late_max: 200, ..limits(100, 50) }, 100);
    let kept = gathered.sites[0].late.len();
    assert!(gathered.is_full && (200..300).contains(&kept), "{kept}");
    assert!(gathered.positions[0] > 0 && gathered.positions[0] < late.len() as u64);
}

proptest! {
    /// All at once, read in parts, handed over in pieces: the same.
    #[test]
    fn a_batch_is_a_function_of_its_bytes(
        a in prop::collection::vec((0..60_u64, 0..3_u8), 0..30),
        b in prop::collection::vec((0..60_u64, 0..3_u8), 0..30),
        closes in 0..70_u64, merged_to in 0..60_u64, bytes_max in 1..2_000_usize, late_max in 1..500_usize, part in 1..90_usize,
        site in 1..300_usize, all in 1..900_usize,
    ) {
        let write = |lines: &[(u64, u8)]| -> String { lines.iter().map(|(at, site)| line(*at, &format!("s{site}.org"), "text")).collect() };
        let (a, b) = (write(&a), write(&b));
        let texts = [("a", a.as_str(), false), ("bb", b.as_str(), false)];
        let limits = Limits { closes_us: closes, merged_to_us: merged_to, bytes_max, late_max };
        let whole = merge(&texts, limits, usize::MAX);
        prop_assert_eq!(&merge_in(&texts, limits, part, Pieces { site, all }), &whole);
    }
}
