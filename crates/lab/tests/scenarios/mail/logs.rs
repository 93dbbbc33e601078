//! The log of a mail cluster: while letters come in, `phalanx logs`, agents, the share and a node are killed or hung, and files are moved aside as
//! logrotate does. Each line that a daemon wrote on either node is in the merged log once; a message is followed over nodes by its
//! Message-ID; what is counted is what the lines say.

use super::flow::{Flow, TAKEN};
use super::queues::{all_arrive, letters_at, taken};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);
const LETTERS: usize = 200;

/// How often each text is there, by node.
type Texts = BTreeMap<(String, String), usize>;

/// What daemons wrote on the nodes' disks, without times, but for balancers' checks.
fn on_disk(figure: &Figure) -> Result<Texts> {
    let mut texts = Texts::new();
    for node in MAIL_NODES {
        for source in ["postfix", "mailboxes", "logins"] {
            let said = figure.host(node).text(&format!(
                "cat /var/log/phalanx/{source}.log.1 /var/log/phalanx/{source}.log 2>/dev/null || true"
            ))?;
            for line in said.lines() {
                let text = match source {
                    // `Nov 28 16:00:53 host text`.
                    "postfix" => {
                        line.split_once(':').and_then(|(_, rest)| rest.splitn(3, ' ').nth(2)).unwrap_or(line).to_owned()
                    }
                    _ => format!("dovecot: {}", line.split_once(' ').map_or(line, |(_, text)| text)),
                };
                let text = text.strip_prefix("phalanx-").unwrap_or(&text).to_owned();
                let is_check = text.contains("[10.9.0.1]")
                    || text.contains("(phalanx-probe)<")
                    || (text.contains("-login: ") && text.contains("rip=10.9.0.1,"));
                if !is_check {
                    *texts.entry((node.to_owned(), text)).or_default() += 1;
                }
            }
        }
    }
    Ok(texts)
}

/// What is merged, without times and origins.
fn merged(figure: &Figure) -> Result<Texts> {
    let mut texts = Texts::new();
    for line in figure.host("nas").text("cat /srv/nas/mail/.phalanx-logs/.mail/cluster/mail.log*")?.lines() {
        if line.starts_with('#') {
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let (_, node, rest) = (words.next(), words.next().context("a node")?, words.next().context("a text")?);
        let text = rest.rsplitn(3, ' ').nth(2).context("an origin")?;
        *texts.entry((node.to_owned(), text.to_owned())).or_default() += 1;
    }
    Ok(texts)
}

fn trouble(figure: &Figure) -> Result<()> {
    let kill = |node: &str, unit: &str| {
        eventually(LONG, &format!("{unit} to kill"), || {
            figure.host(node).text(&format!("systemctl kill --kill-whom=main --signal=KILL {unit}")).map(drop)
        })
    };
    let pause = || std::thread::sleep(Duration::from_millis(1_500));
    let reloads =
        || figure.host("mail1").text("cat /var/log/phalanx/mailboxes.log* | grep --count 'SIGHUP received' || true");
    let before = reloads()?;
    for node in MAIL_NODES {
        kill(node, "phalanx-logs")?;
        pause();
        kill(node, "phalanx-agent")?;
        figure.host(node).text("logrotate --force /etc/logrotate.d/phalanx")?;
        kill(node, "phalanx-logs")?;
        pause();
    }
    // Deliveries go on while logs are moved aside: a Dovecot that reloads ends them.
    let after = reloads()?;
    ensure!(before == after, "Dovecot reloaded {before} times before, {after} times now");
    figure.host("mail1").hang_storage()?;
    std::thread::sleep(Duration::from_secs(3));
    figure.host("mail1").release_storage()?;
    kill("mail1", "phalanx-logs")
}

fn trace(figure: &Figure, message_id: &str, states: &[(&str, &str)]) -> Result<Value> {
    eventually(LONG, &format!("the way of {message_id}"), || {
        let found = figure.json(&format!("mail trace {message_id}"))?;
        let fates = found["recipients"].as_array().context("recipients")?;
        for (to, state) in states {
            let is = fates.iter().any(|fate| fate["to"] == *to && fate["state"] == *state);
            ensure!(is, "{to} is not {state}: {found:#}");
        }
        Ok(found)
    })
}

#[test]
fn mail_logs() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let mut sending = letters_at(figure, MAIL_EXTERNAL, 1, LETTERS, (3, 0.2))?;
        trouble(figure)?;
        eventually(LONG, "that the letters are sent", || {
            ensure!(!sending.is_running()?, "{} so far", taken(&sending.stdout()).len());
            Ok(())
        })?;
        let sent = taken(&sending.stdout());
        ensure!(sent.len() > LETTERS / 2, "only {} were taken", sent.len());
        all_arrive(figure, &sent, LONG)?;
        // It is switched off without a word: what daemons had written is on its disk, and a mark says that there may have been more.
        figure.host("mail2").kill()?;
        figure.host("mail2").boot()?;
        figure.host("mail2").text("echo nameserver 198.51.100.100 > /etc/resolv.conf")?;
        figure.settled(&MAIL_NODES)?;
        messages(figure)?;
        each_line_is_there_once(figure)?;
        let log = figure.host("nas").text("cat /srv/nas/mail/.phalanx-logs/.mail/cluster/mail.log*")?;
        ensure!(log.contains("# gap: mail2 stopped uncleanly"), "the gap is marked");
        counted(figure)?;
        for words in ["mail log", "mail trace nothing@nowhere.example", "mail trace alias@far.example"] {
            let shown = figure.host("cp").run(&format!("phalanx {words}"))?;
            println!("$ phalanx {words}\n{}{}", shown.stdout, shown.stderr);
        }
        Ok(())
    })
}

/// Through an alias to two mailboxes, through a forwarder into the world, and from a mailbox into the world.
fn messages(figure: &Figure) -> Result<()> {
    let send = |id: &str, words: &str| {
        eventually(LONG, &format!("that {id} is taken"), || {
            let said = figure.swaks(MAIL_EXTERNAL, &format!("--h-Message-Id '<{id}>' {words}"))?;
            ensure!(said.contains(TAKEN), "{said}");
            Ok(())
        })
    };
    send(&format!("alias@{FAR}"), &format!("--from ann@{FAR} --to sales@example.org"))?;
    send(&format!("away@{FAR}"), &format!("--from ann@{FAR} --to away@example.org"))?;
    let login = format!("--port 587 --tls --auth PLAIN --auth-user info@example.org --auth-password {PASSWORD}");
    send("out@example.org", &format!("--from info@example.org --to dora@{FAR} {login}"))?;
    let found =
        trace(figure, &format!("alias@{FAR}"), &[("info@example.org", "stored"), ("boss@example.org", "stored")])?;
    let lines = found["lines"].as_array().context("lines")?;
    for word in ["client=", "message-id=", "queue active", "saved mail to INBOX", "removed"] {
        ensure!(
            lines.iter().any(|line| line["text"].as_str().is_some_and(|text| text.contains(word))),
            "no {word}: {found:#}"
        );
    }
    // It leaves under a second queue id, with its sender rewritten.
    let carl = format!("carl@{FAR}");
    let found = trace(figure, &format!("<away@{FAR}>"), &[(&carl, "sent")])
        .or_else(|_| trace(figure, &format!("away@{FAR}"), &[(&carl, "sent")]))?;
    let ids: std::collections::BTreeSet<_> =
        found["lines"].as_array().context("lines")?.iter().filter_map(|line| line["queue_id"].as_str()).collect();
    ensure!(ids.len() == 2, "two queue ids: {found:#}");
    trace(figure, "out@example.org", &[(&format!("dora@{FAR}"), "sent")]).map(drop)
}

fn each_line_is_there_once(figure: &Figure) -> Result<()> {
    let before = on_disk(figure)?;
    ensure!(before.values().sum::<usize>() > 1_000, "there is next to nothing");
    eventually(LONG, "that all lines are merged", || {
        let merged = merged(figure)?;
        let missing: Vec<_> =
            before.iter().filter(|(key, count)| merged.get(*key).unwrap_or(&0) < *count).take(5).collect();
        ensure!(missing.is_empty(), "missing: {missing:#?}");
        Ok(())
    })?;
    let merged = merged(figure)?;
    let after = on_disk(figure)?;
    let twice: Vec<_> = merged.iter().filter(|(key, count)| after.get(*key).unwrap_or(&0) < *count).take(5).collect();
    ensure!(twice.is_empty(), "merged more often than written: {twice:#?}");
    println!("{} lines on two nodes, each merged once", before.values().sum::<usize>());
    Ok(())
}

fn counted(figure: &Figure) -> Result<()> {
    eventually(LONG, "that messages are counted", || {
        let is_stored = |text: &str| text.contains("@example.org)<") && text.contains("saved mail to ");
        let stored: usize =
            on_disk(figure)?.iter().filter(|((_, text), _)| is_stored(text)).map(|(_, count)| count).sum();
        let all = figure.json("traffic --site example.org")?;
        let days = all["items"].as_array().context("days")?;
        let sum = |what: &str| days.iter().filter_map(|day| day[what].as_u64()).sum::<u64>();
        let (messages, sent, received) = (sum("messages"), sum("sent_bytes"), sum("received_bytes"));
        // What was stored, and the one that was handed in.
        ensure!(messages == stored as u64 + 1, "{messages} messages were counted, {stored} stored");
        ensure!(received > messages * 200 && sent > 200, "{all:#}");
        println!("{messages} messages, {received} bytes received, {sent} sent");
        Ok(())
    })
}
