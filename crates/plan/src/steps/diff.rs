//! A short difference of two texts, for people.

/// Lines of context on each side.
const CONTEXT: usize = 2;
/// The most lines that a difference shows.
const LINES_MAX: usize = 60;

/// The lines of `wanted` (`-`) and `seen` (`+`) between the first and the last that differ, with a little context.
pub fn lines(wanted: &str, seen: &str) -> String {
    let (wanted, seen): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), seen.lines().collect());
    let same_head = wanted.iter().zip(&seen).take_while(|(a, b)| a == b).count();
    let room = wanted.len().min(seen.len()) - same_head;
    let same_tail = wanted.iter().rev().zip(seen.iter().rev()).take(room).take_while(|(a, b)| a == b).count();
    let (gone, come) = (&wanted[same_head..wanted.len() - same_tail], &seen[same_head..seen.len() - same_tail]);
    if gone.is_empty() && come.is_empty() {
        return String::new();
    }
    let before = &wanted[same_head.saturating_sub(CONTEXT)..same_head];
    let after = &wanted[wanted.len() - same_tail..][..same_tail.min(CONTEXT)];
    let marked = |mark: char, lines: &[&str]| lines.iter().map(|line| format!("{mark}{line}")).collect::<Vec<_>>();
    let mut all: Vec<String> =
        [marked(' ', before), marked('-', gone), marked('+', come), marked(' ', after)].into_iter().flatten().collect();
    if all.len() > LINES_MAX {
        let more = all.len() - LINES_MAX;
        all.truncate(LINES_MAX);
        all.push(format!("… {more} more lines"));
    }
    format!("@@ line {} @@\n{}\n", same_head + 1, all.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::lines;
    use expect_test::expect;

    #[test]
    fn a_difference_shows_what_changed_and_its_surroundings() {
        expect![[r#"
            @@ line 4 @@
             b
             c
            -d
            +D
            +x
             e
        "#]]
        .assert_eq(&lines("a\nb\nc\nd\ne\n", "a\nb\nc\nD\nx\ne\n"));
        assert_eq!(lines("a\na\n", "a\na\n"), "");
        assert_eq!(lines("a\na\n", "a\na\na\n"), "@@ line 3 @@\n a\n a\n+a\n");
    }

    #[test]
    fn a_long_difference_is_cut() {
        let long: String = (0..500).map(|n| format!("{n}\n")).collect();
        assert!(lines("", &long).ends_with("… 440 more lines\n"));
    }
}
