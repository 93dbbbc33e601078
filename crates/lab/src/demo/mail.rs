//! The half of the demonstration that is mail: letters from the world and somebody who reads them, while a node dies and the mailboxes move.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::figure::Figure;
use crate::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_LOGICAL, PASSWORD};
use crate::{Host, eventually, load};

/// The mailbox of the customer who has the wiki.
pub const MAILBOX: &str = "ada@example.org";
const DOMAIN: &str = "example.org";
const PROGRAM: &str = include_str!("mail.py");
const STOP_FILE: &str = "/run/demo-mail.stop";
/// How long the world may take to send and read what is left.
const REST: Duration = Duration::from_secs(180);

/// A part of the load, from this time of the machine's clock, in milliseconds.
struct Phase {
    what: &'static str,
    from_ms: u64,
}

/// What the world's program writes. Times are in seconds since it began.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Begin { clock: f64 },
    Letter { at: f64, tries: u32, took: Option<f64>, taken: Option<f64>, read: Option<f64>, copies: u32, said: String },
    Look { look: f64, took: f64, logins: u32, why: String },
}

/// A domain and a mailbox for the account that has the wiki.
///
/// # Errors
/// A command failed, or no letter is taken.
pub fn install(figure: &Figure, account: &str) -> Result<()> {
    figure.phalanx(&format!("mail-domain add {DOMAIN} --account {account} --logical-server {MAIL_LOGICAL}"))?;
    figure.mailbox(MAILBOX)?;
    eventually(Duration::from_secs(30), "that the balancer sends mail to the nodes", || {
        let letter = format!("--from ann@{FAR} --to {MAILBOX} --quit-after RCPT");
        let said = figure.swaks(MAIL_EXTERNAL, &letter)?;
        ensure!(said.contains("250 2.1.5"), "{said}");
        Ok(())
    })
}

/// Does things under the load of letters; returns what came of it, as a table and sentences.
///
/// # Errors
/// Something did not work; the words say what.
pub fn act(figure: &Figure, say: &dyn Fn(&str)) -> Result<String> {
    let world = figure.host("world");
    world.write_file("/run/demo-mail.py", PROGRAM.as_bytes())?;
    let line = format!("exec python3 /run/demo-mail.py {MAIL_EXTERNAL} {MAILBOX} {PASSWORD} {STOP_FILE}");
    let running = world.spawn(&line)?;
    let mut phases = vec![phase("two mail nodes")];
    thread::sleep(Duration::from_secs(8));

    say("taking the power of mail2, which does not hold the mailboxes");
    phases.push(phase("mail2 is killed"));
    let mail2 = figure.host("mail2");
    Host::kill(&mail2)?;
    thread::sleep(Duration::from_secs(12));

    say("giving mail2 its power back");
    phases.push(phase("mail2 comes back"));
    mail2.boot()?;
    mail2.text("echo nameserver 198.51.100.100 > /etc/resolv.conf")?;
    figure.settled(&["mail2"])?;

    say("moving the mailboxes from mail1 to mail2: phalanx cluster move-grant mail mailboxes --to mail2");
    phases.push(phase("mailboxes move"));
    let begin = Instant::now();
    figure.phalanx("cluster move-grant mail mailboxes --to mail2")?;
    eventually(Duration::from_secs(60), "that mail2 holds the mailboxes", || {
        let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
        ensure!(grant["holder"] == "mail2" && grant["moving_to"].is_null(), "{grant}");
        Ok(())
    })?;
    let moved = begin.elapsed();
    thread::sleep(Duration::from_secs(10));
    world.write_file(STOP_FILE, b"")?;
    say("waiting until every letter is sent and read");
    let text = running.wait(REST)?.text().context("the world's letters")?;
    let lines: Vec<Line> = (text.lines().map(serde_json::from_str).collect::<Result<_, _>>())
        .with_context(|| format!("the world's letters: {text}"))?;
    let summary = format!("mail2 held the mailboxes {:.1} s after the command.", moved.as_secs_f64());
    Ok(format!("{}\n{}\n{summary}", table(&phases, &lines)?, sentences(&lines)))
}

fn phase(what: &'static str) -> Phase {
    Phase { what, from_ms: load::clock_ms() }
}

fn table(phases: &[Phase], lines: &[Line]) -> Result<String> {
    let began = lines.iter().find_map(|line| if let Line::Begin { clock } = line { Some(*clock) } else { None });
    let began_ms = began.context("the world did not say when it began")? * 1e3;
    let mut text = format!(
        "{:<18}{:>8}{:>9}{:>7}{:>10}{:>12}{:>12}{:>9}{:>9}",
        "phase", "letters", "at once", "later", "never", "p50 ms", "read in, s", "looks", "failed"
    );
    for (number, phase) in phases.iter().enumerate() {
        let upto_ms = phases.get(number + 1).map_or(u64::MAX, |next| next.from_ms);
        let is_in = |at: f64| {
            (phase.from_ms..upto_ms).contains(&((began_ms + at * 1e3) as u64))
                || (number == 0 && began_ms + at * 1e3 < phase.from_ms as f64)
        };
        let (mut letters, mut at_once, mut later, mut never, mut looks, mut failed) = (0, 0, 0, 0, 0, 0);
        let (mut times_ms, mut read_s) = (Vec::new(), Vec::new());
        for line in lines {
            match line {
                Line::Letter { at, tries, took, taken, read, .. } if is_in(*at) => {
                    letters += 1;
                    match taken {
                        None => never += 1,
                        Some(_) if *tries == 1 => at_once += 1,
                        Some(_) => later += 1,
                    }
                    times_ms.extend(took.map(|took| took * 1e3));
                    read_s.extend(taken.zip(*read).map(|(taken, read)| (read - taken).max(0.0)));
                }
                Line::Look { look, why, .. } if is_in(*look) => {
                    looks += 1;
                    failed += u32::from(!why.is_empty());
                }
                _ => {}
            }
        }
        let (middle_ms, longest_s) = (median(&mut times_ms), read_s.iter().copied().fold(f64::NAN, f64::max));
        text += &format!(
            "\n{:<18}{letters:>8}{at_once:>9}{later:>7}{never:>10}{middle_ms:>12.0}{longest_s:>12.1}{looks:>9}{failed:>9}",
            phase.what
        );
    }
    Ok(text)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What matters, in words.
fn sentences(lines: &[Line]) -> String {
    let (mut taken_count, mut missing, mut twice) = (0, 0, 0);
    let (mut logins_count, mut failures, mut dark_s, mut dark_from) = (0, BTreeMap::new(), 0.0_f64, None);
    for line in lines {
        match line {
            Line::Begin { .. } => {}
            Line::Letter { taken, copies, said, .. } => {
                taken_count += u32::from(taken.is_some());
                missing += u32::from(taken.is_some() && *copies == 0);
                twice += u32::from(*copies > 1);
                if !said.is_empty() {
                    *failures.entry(format!("a letter had to wait: {said}")).or_insert(0) += 1;
                }
            }
            Line::Look { look, took, logins, why } => {
                logins_count = *logins;
                if why.is_empty() {
                    dark_s = dark_from.take().map_or(dark_s, |from| dark_s.max(look + took - from));
                } else {
                    dark_from.get_or_insert(*look);
                    *failures.entry(format!("the reader was turned away: {why}")).or_insert(0) += 1;
                }
            }
        }
    }
    let mut text = format!(
        "(at once, later, never: by which try a letter was taken; read in: the longest from there to its reader; looks: his, into the mailbox)\n\
         {taken_count} letters were taken; {missing} of them are not in the mailbox, {twice} are there more than once.\n\
         The reader logged in {logins_count} times; the longest time without the mailbox was {dark_s:.1} s."
    );
    for (what, count) in failures.iter().take(super::FAILURES_MAX) {
        text += &format!("\n{count} × {what}");
    }
    text
}
