//! Names of folders over IMAP.

use super::{INFO, outside, tell};
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;

/// What CREATE says, and what is answered; text of bytes as Latin-1.
const FOLDERS: [(&str, &str); 24] = [
    ("\"../evil\"", "NO [CANNOT]"),
    ("\"../../boss.2/Maildir\"", "NO [CANNOT]"),
    ("\"/etc/passwd\"", "NO [CANNOT]"),
    ("\"a/b\"", "NO [CANNOT]"),
    ("\"..\"", "NO [CANNOT]"),
    ("\".\"", "NO [CANNOT]"),
    ("\"\"", "NO [CANNOT]"),
    ("\"a..b\"", "NO [CANNOT]"),
    ("\"~root\"", "NO [CANNOT]"),
    ("\"a\0b\"", "BAD"),
    ("\"&\"", "NO Mailbox name is not valid mUTF-7"),
    ("\"&bad\"", "NO Mailbox name is not valid mUTF-7"),
    ("\"\u{fc}\"", "NO Mailbox name is not valid mUTF-7"),
    ("\"&APw-ber\"", "OK"),
    ("\"&-\"", "OK"),
    ("\"%d\"", "OK"),
    ("\"$x\"", "OK"),
    ("\"{x}\"", "OK"),
    ("\"*\"", "OK"),
    ("\" x\"", "OK"),
    ("\"it's\"", "OK"),
    ("\"new.cur.tmp\"", "OK"),
    ("\"subscriptions\"", "OK"),
    ("\"a\\\\b\"", "OK"),
];

/// Each is made or refused, LIST has what was made and no more, and nothing lies outside the mailbox.
pub fn all(figure: &Figure) -> Result<()> {
    let long = [(format!("\"{}\"", "x".repeat(250)), "OK"), (format!("\"{}\"", "x".repeat(300)), "NO [CANNOT]")];
    let orders: Vec<(String, &str)> =
        FOLDERS.iter().map(|(name, answer)| ((*name).to_owned(), *answer)).chain(long).collect();
    let mut lines: Vec<String> = orders.iter().map(|(name, _)| format!("CREATE {name}")).collect();
    lines.push("LIST \"\" *".to_owned());
    let before = outside(figure)?;
    let said = tell(figure, "imap", INFO, &lines)?;
    for ((name, answer), said) in orders.iter().zip(&said) {
        let last = said.lines().last().unwrap_or_default();
        let is_it = last.strip_prefix("t ").or(last.strip_prefix("* ")).is_some_and(|rest| rest.starts_with(answer));
        ensure!(is_it, "CREATE {name:.60}: {said:?}, not {answer}");
    }
    let listed = said.last().context("LIST has an answer")?;
    for (name, _) in orders.iter().filter(|(_, answer)| *answer == "OK") {
        // A name may come back without its quotes where it needs none.
        let bare = name.trim_matches('"');
        let is_listed =
            listed.lines().any(|line| line.ends_with(&format!(" {name}")) || line.ends_with(&format!(" {bare}")));
        ensure!(is_listed, "{name} is not in {listed}");
    }
    let made = listed.lines().filter(|line| line.starts_with("* LIST") && !line.contains("\\Noselect")).count();
    let own = orders.iter().filter(|(_, answer)| *answer == "OK").count();
    // INBOX, and the folders that every mailbox has.
    ensure!(made == own + 5, "{made} folders, and {own} were made: {listed}");
    let after = outside(figure)?;
    ensure!(before == after, "something lies outside the mailbox: {after:#?} and not {before:#?}");
    // The holder's doveadm reads the same names.
    let names = figure
        .host("mail1")
        .text(&format!("doveadm -c /var/lib/phalanx/live/mailboxes.conf mailbox list -u {INFO}"))?;
    for name in ["über", "&", "%d", "$x", "{x}", "*", "it's", "a\\b"] {
        ensure!(names.lines().any(|line| line == name), "doveadm does not have {name}: {names}");
    }
    Ok(())
}
