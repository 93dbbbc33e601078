//! The mail cluster on the real daemons: what it is for, what of it needs nobody else, how soon changes count, what moves its mailboxes.

mod checkers;
mod clients;
mod filter;
mod flow;
mod hostile;
mod logs;
mod look_ups;
mod one_node;
mod probe;
mod queues;
mod refuses;
mod talk;

use anyhow::{Context, Result, ensure};
use flow::{Flow, TAKEN, refused, send};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use std::time::Duration;

const SERVERS: [&str; 4] = ["mail1", "mail2", "nas", "lb"];

#[test]
fn mail() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &["once"])?.play("once")?;
        figure.settled(&MAIL_NODES)
    })
}

/// All of it again while there is neither panel nor agent anywhere, also on a node that was started anew.
#[test]
fn mail_without_panel_and_agents() -> Result<()> {
    Figure::scenario_mail(|figure| {
        let flow = Flow::prepare(figure, &["alone", "again"])?;
        figure.settled(&SERVERS)?;
        figure.host("cp").text("systemctl stop phalanx-panel")?;
        for server in SERVERS {
            figure.host(server).text("systemctl stop phalanx-agent")?;
        }
        flow.play("alone")?;
        // The holder is switched off and on; its agent starts as at every boot, the panel stays away.
        let holder = figure.host("mail1");
        holder.kill()?;
        holder.boot()?;
        holder.text("systemctl start multi-user.target")?;
        eventually(Duration::from_secs(60), "the holder's daemons", || {
            holder
                .text("systemctl is-active phalanx-postfix phalanx-mailboxes phalanx-mail-router phalanx-logins")
                .map(drop)
        })?;
        figure.host("mail1").text("echo nameserver 198.51.100.100 > /etc/resolv.conf")?;
        eventually(Duration::from_secs(60), "mail after the holder's start", || {
            let said = send(figure, &format!("ann@{FAR}"), "info@example.org", "after the start")?;
            ensure!(said.contains(TAKEN), "{said}");
            figure.inbox("info@example.org").map(drop)
        })?;
        flow.play("again")
    })
}

/// What a login and a letter at each node, and at the balancer, come to.
fn at_each_node(figure: &Figure, check: impl Fn(&str) -> Result<()>) -> Result<()> {
    let addresses = MAIL_NODES.map(|node| figure.address(node));
    for address in addresses {
        check(&address?)?;
    }
    Ok(())
}

fn logs_in(figure: &Figure, server: &str, address: &str, password: &str) -> Result<bool> {
    let line = format!("curl -sSk -m 10 -u '{address}:{password}' 'imaps://{server}/INBOX' -X NOOP 2>&1");
    Ok(figure.host("world").run(&line)?.success())
}

/// The mailboxes move by command while letters come in and somebody reads: clients reconnect, nothing is lost, nothing comes twice.
#[test]
fn mailboxes_move_under_load() -> Result<()> {
    const LETTERS: usize = 60;
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let load = format!(
            "for n in $(seq {LETTERS}); do swaks --server {MAIL_EXTERNAL} --timeout 20 --helo world.{FAR} --from ann@{FAR} --to info@example.org \
             --header \"Subject: number $n.\" > /run/sent-$n 2>&1 & sleep 0.3; done; wait; grep -l '{TAKEN}' /run/sent-* | wc -l"
        );
        let mut sending = figure.host("world").spawn(&load)?;
        std::thread::sleep(Duration::from_secs(3));
        for (to, number) in [("mail2", 2), ("mail1", 3)] {
            figure.phalanx(&format!("cluster move-grant mail mailboxes --to {to}"))?;
            eventually(Duration::from_secs(60), &format!("that {to} holds the mailboxes"), || {
                let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
                ensure!(grant["holder"] == to && grant["number"] == number && grant["moving_to"].is_null(), "{grant}");
                ensure!(logs_in(figure, MAIL_EXTERNAL, "info@example.org", PASSWORD)?, "nobody can log in");
                Ok(())
            })?;
            let running = MAIL_NODES.map(|node| figure.host(node).text("pgrep -f '[m]ailboxes.conf' || true"));
            for (node, pids) in MAIL_NODES.into_iter().zip(running) {
                ensure!(pids?.is_empty() == (node != to), "Dovecot opens mailboxes on {node} while {to} holds them");
            }
        }
        eventually(Duration::from_secs(90), "that the last letter is sent", || {
            ensure!(!sending.is_running()?, "{}", sending.stdout());
            Ok(())
        })?;
        let taken: usize = sending.stdout().trim().parse().context("a number of letters")?;
        ensure!(taken == LETTERS, "{taken} of {LETTERS} letters were taken");
        for node in MAIL_NODES {
            figure.host(node).text("postqueue -c /var/lib/phalanx/live/postfix -f")?;
        }
        eventually(Duration::from_secs(60), "every letter in its mailbox", || {
            let count = |n: usize, letters: &[String]| {
                letters.iter().filter(|l| l.contains(&format!("Subject: number {n}."))).count()
            };
            let letters = figure.inbox("info@example.org")?;
            let odd: Vec<(usize, usize)> =
                (1..=LETTERS).map(|n| (n, count(n, &letters))).filter(|(_, count)| *count != 1).collect();
            ensure!(odd.is_empty(), "letters that are not there once, with how often they are: {odd:?}");
            Ok(())
        })
    })
}

/// A mailbox, a password, a removal count on every node within a second of the panel's answer; what was open is ended.
#[test]
fn mail_changes_count_at_once() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        // Each node's resolver and filter are warm from here on.
        at_each_node(figure, |node| {
            ensure!(logs_in(figure, node, "info@example.org", PASSWORD)?, "{node}");
            Ok(())
        })?;
        let within_a_second = |what: &str, check: &dyn Fn(&str) -> Result<()>| {
            // The clock of a loaded machine: the promise is a second, a try may take some of it.
            eventually(Duration::from_millis(2_500), what, || at_each_node(figure, check))
        };
        figure.mailbox("new@example.org")?;
        within_a_second("a new mailbox", &|node| {
            ensure!(logs_in(figure, node, "new@example.org", PASSWORD)?, "{node}: no login");
            let said = figure.swaks(node, "--from ann@far.example --to new@example.org --quit-after RCPT")?;
            ensure!(said.contains("250 2.1.5"), "{node}: {said}");
            Ok(())
        })?;
        let session = figure.host("world").spawn(&format!(
            "(sleep 1; printf 'a LOGIN new@example.org {PASSWORD}\\r\\nb SELECT INBOX\\r\\nc IDLE\\r\\n'; sleep 120) | \
             timeout 60 openssl s_client -quiet -connect {MAIL_EXTERNAL}:993 2> /dev/null; echo; echo SESSION-IS-OVER"
        ))?;
        eventually(Duration::from_secs(10), "an open session", || {
            ensure!(session.stdout().contains("+ idling"), "{}", session.stdout());
            Ok(())
        })?;
        // Its own line: IMAP's LIST-EXTENDED ends alike.
        let has_ended = || session.stdout().lines().any(|line| line == "SESSION-IS-OVER" || line.starts_with("* BYE"));
        ensure!(!has_ended(), "the session ended by itself: {}", session.stdout());
        figure.host("cp").text("echo another-password | phalanx mailbox change new@example.org --password-file -")?;
        within_a_second("a new password", &|node| {
            ensure!(logs_in(figure, node, "new@example.org", "another-password")?, "{node}: the new one does not hold");
            ensure!(!logs_in(figure, node, "new@example.org", PASSWORD)?, "{node}: the old one holds");
            Ok(())
        })?;
        eventually(Duration::from_secs(5), "the end of the session of the old password", || {
            ensure!(has_ended(), "{}", session.stdout());
            Ok(())
        })?;
        figure.phalanx("mailbox remove new@example.org")?;
        within_a_second("a removal", &|node| {
            ensure!(!logs_in(figure, node, "new@example.org", "another-password")?, "{node}: a login");
            refused(
                &figure.swaks(node, "--from ann@far.example --to new@example.org --quit-after RCPT")?,
                "550",
                "User unknown",
            )
        })
    })
}
