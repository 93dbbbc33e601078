//! A mailbox is open on one node at a time: over a load of letters and readers, while nodes are drained, killed, fenced and come back.
//!
//! A probe on each node writes down what is open. For each mailbox the notes of both nodes, put in order of time, must fall into as many parts
//! as its holder changed, and one more: had two nodes had it open in turns or at once, there would be more parts. That the probe sees such a thing is
//! shown at the end.

use super::flow::Flow;
use super::queues::{READERS, all_arrive, letters_at, taken};
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use phalanx_lab::{Background, eventually};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const PROBE_PY: &str = include_str!("probe.py");
const READERS_PY: &str = include_str!("readers.py");
const LONG: Duration = Duration::from_secs(90);
/// How long it goes on: rounds are begun for so long.
const MINUTES: &str = "PHALANX_SOAK_MINUTES";

/// What the probes of a node wrote. A host that is killed takes its probe with it.
struct Probes<'f> {
    figure: &'f Figure,
    running: BTreeMap<&'static str, Background>,
    /// Milliseconds, mailbox, node.
    notes: Vec<(u64, String, &'static str)>,
}

impl<'f> Probes<'f> {
    fn start(figure: &'f Figure) -> Result<Self> {
        let mut probes = Self { figure, running: BTreeMap::new(), notes: vec![] };
        MAIL_NODES.into_iter().try_for_each(|node| probes.watch(node))?;
        Ok(probes)
    }

    fn watch(&mut self, node: &'static str) -> Result<()> {
        let host = self.figure.host(node);
        host.write_file("/run/probe.py", PROBE_PY.as_bytes())?;
        self.collect(node)?;
        self.running.insert(node, host.spawn("exec python3 /run/probe.py")?);
        Ok(())
    }

    /// Takes the notes of a node's probe, which is ended.
    fn collect(&mut self, node: &'static str) -> Result<()> {
        let Some(probe) = self.running.remove(node) else { return Ok(()) };
        for line in probe.stdout().lines() {
            // The last line of a probe that was killed may be half of one.
            let Some((at, mailbox)) = line.split_once(' ') else { continue };
            let Ok(at) = at.parse() else { continue };
            self.notes.push((at, mailbox.to_owned(), node));
        }
        Ok(())
    }

    /// Ends the probes; returns the mailboxes that were on the nodes in more turns than their holder's changes explain, with those turns.
    fn judge(&mut self, moves: usize) -> Result<BTreeMap<String, Vec<&'static str>>> {
        MAIL_NODES.into_iter().try_for_each(|node| self.collect(node))?;
        let mut notes = std::mem::take(&mut self.notes);
        notes.sort();
        let mut parts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (_, mailbox, node) in &notes {
            let parts = parts.entry(mailbox.clone()).or_default();
            if parts.last() != Some(node) {
                parts.push(node);
            }
        }
        println!("{} notes of open mailboxes; on which node, in turns: {parts:.300?}", notes.len());
        for node in MAIL_NODES {
            ensure!(notes.iter().any(|(_, mailbox, on)| mailbox != "*" && *on == node), "{node} opened none");
        }
        parts.retain(|_, parts| parts.len() > moves + 1);
        Ok(parts)
    }
}

/// Each mailbox was on one node at a time, where its holder changed so often. And the probes, asked when one is on two, say so: a Dovecot is started by
/// hand on mail2, past its guards, while mail1 has the mailbox open.
fn judge(figure: &Figure, mut probes: Probes, moves: usize) -> Result<()> {
    let before =
        probes.running.values().map(|probe| probe.stdout().lines().count()).sum::<usize>() + probes.notes.len();
    ensure!(before > 1_000, "the probes saw next to nothing");
    let twice = probes.judge(moves)?;
    ensure!(twice.is_empty(), "{moves} moves, but these were on the nodes in turns: {twice:?}");
    MAIL_NODES.into_iter().try_for_each(|node| probes.watch(node))?;
    let conf = figure.host("mail1").text("cat /var/lib/phalanx/live/mailboxes.conf")?;
    let mail2 = figure.host("mail2");
    mail2.write_file("/run/second.conf", format!("{conf}\nbase_dir = /run/second\n").as_bytes())?;
    let _second = mail2.spawn("exec dovecot -F -c /run/second.conf")?;
    eventually(LONG, "a second Dovecot", || mail2.text("test -S /run/second/auth-userdb").map(drop))?;
    let session = format!(
        "(printf 'a SELECT INBOX\\r\\n'; sleep 4) | timeout 20 /usr/lib/dovecot/imap -c /run/second.conf -u {} 2>&1",
        READERS[0]
    );
    let said = mail2.run(&session)?.stdout;
    ensure!(said.contains("a OK"), "{said}");
    let twice = probes.judge(0)?;
    let (local, domain) = READERS[0].split_once('@').context("an address")?;
    let is_it = |mailbox: &&String| mailbox.starts_with(&format!("{domain}/{local}."));
    ensure!(
        twice.keys().any(|mailbox| is_it(&mailbox)),
        "{} is open on two nodes, and the probes see {twice:?}",
        READERS[0]
    );
    Ok(())
}

/// The holder of the mailboxes and the grant's number.
fn holder(figure: &Figure) -> Result<(String, u64)> {
    let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
    ensure!(grant["moving_to"].is_null(), "they move: {grant}");
    let holder = grant["holder"].as_str().context("a holder")?.to_owned();
    Ok((holder, grant["number"].as_u64().context("a number")?))
}

fn opens(figure: &Figure, node: &str) -> Result<()> {
    eventually(LONG, &format!("that {node} opens mailboxes"), || {
        let (holder, _) = holder(figure)?;
        ensure!(holder == node, "{holder} does");
        figure.mail_curl(READERS[0], &format!("imaps://{MAIL_EXTERNAL}/INBOX"), "-X NOOP").map(drop)
    })
}

/// One of everything: a move, the death of the holder that is a slave, its return, a drain, the death of the master.
fn round(figure: &Figure, probes: &mut Probes) -> Result<()> {
    let move_to = |node: &str| {
        figure.phalanx(&format!("cluster move-grant mail mailboxes --to {node}"))?;
        opens(figure, node)
    };
    let alive_again = |node: &'static str, probes: &mut Probes| {
        figure.host(node).boot()?;
        figure.host(node).text("echo nameserver 198.51.100.100 > /etc/resolv.conf")?;
        probes.watch(node)?;
        figure.settled(&MAIL_NODES)
    };
    move_to("mail2")?;
    figure.host("mail2").kill()?;
    figure.phalanx("queue adopt mail2 --to mail1")?;
    move_to("mail1")?;
    alive_again("mail2", probes)?;
    figure.phalanx("cluster drain mail mail2")?;
    std::thread::sleep(Duration::from_secs(3));
    figure.phalanx("cluster undrain mail mail2")?;
    // The panel reaches slaves through their master alone; the holder begins again by itself.
    figure.host("mail1").kill()?;
    std::thread::sleep(Duration::from_secs(3));
    alive_again("mail1", probes)?;
    opens(figure, "mail1")
}

#[test]
fn a_mailbox_is_open_on_one_node() -> Result<()> {
    let minutes: f64 = std::env::var(MINUTES).map_or(Ok(0.0), |minutes| minutes.parse()).context(MINUTES)?;
    let until = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let _switch = figure.power_switch(&MAIL_NODES)?;
        let world = figure.host("world");
        world.write_file("/run/readers.py", READERS_PY.as_bytes())?;
        let reading = format!("exec python3 /run/readers.py {MAIL_EXTERNAL} {PASSWORD} {}", READERS.join(" "));
        let reading = world.spawn(&reading)?;
        let mut probes = Probes::start(figure)?;
        // More than are sent: the end comes by the clock.
        let sending = letters_at(figure, MAIL_EXTERNAL, 1, 1_000_000, (4, 1.0))?;
        let mut rounds = 0;
        while rounds == 0 || Instant::now() < until {
            round(figure, &mut probes)?;
            rounds += 1;
        }
        let said = sending.stdout();
        drop(sending);
        let taken = taken(&said);
        let lost = reading.stdout().lines().filter(|line| line.starts_with("lost")).count();
        let read = reading.stdout().lines().filter(|line| line.starts_with("read")).count();
        println!(
            "{rounds} rounds; {} letters were taken, {} refused for now",
            taken.len(),
            said.lines().count() - taken.len()
        );
        println!("{read} times mail was read, {lost} times a connection was lost or refused");
        ensure!(taken.len() > 50 * rounds && read > 20 * rounds, "there was no load");
        for node in MAIL_NODES {
            figure.phalanx(&format!("queue flush {node}"))?;
        }
        let twice = all_arrive(figure, &taken, LONG)?;
        println!("{twice} letters came twice");
        let (_, number) = holder(figure)?;
        judge(figure, probes, usize::try_from(number - 1)?)?;
        drop(reading);
        Ok(())
    })
}
