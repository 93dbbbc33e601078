//! What a node that is lost had alone goes on elsewhere, after a fence: its queue, and the mailboxes. A node that comes back and hears nobody
//! starts neither.

use super::flow::Flow;
use crate::scenarios::crash_points;
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use phalanx_lab::{Background, eventually};
use std::collections::BTreeMap;
use std::time::Duration;

/// Letters in the queue of the node that dies.
const LETTERS: usize = 1_000;
const LONG: Duration = Duration::from_secs(90);
const LETTERS_PY: &str = include_str!("letters.py");
const SUBJECTS_PY: &str = include_str!("subjects.py");
/// Who gets the letters of [`letters`], in turns.
pub const READERS: [&str; 2] = ["info@example.org", "boss@example.org"];

/// Sends letters from the world, in the background, as fast as forty senders can: Postfix takes a second for each when they come faster than
/// they go.
fn letters(figure: &Figure, server: &str, first: usize, count: usize) -> Result<Background> {
    letters_at(figure, server, first, count, (40, 0.0))
}

/// As [`letters`], so many at a time, each after a pause in seconds; see `letters.py`.
pub fn letters_at(
    figure: &Figure,
    server: &str,
    first: usize,
    count: usize,
    (at_once, pause_s): (u32, f32),
) -> Result<Background> {
    let world = figure.host("world");
    world.write_file("/run/letters.py", LETTERS_PY.as_bytes())?;
    let readers = READERS.join(" ");
    world.spawn(&format!("exec python3 /run/letters.py {server} {first} {count} {at_once} {pause_s} {readers}"))
}

/// The numbers of letters that were taken.
pub fn taken(said: &str) -> Vec<usize> {
    said.lines().filter_map(|line| line.strip_prefix("taken ")?.parse().ok()).collect()
}

/// How often each letter is in the readers' inboxes.
fn arrived(figure: &Figure) -> Result<BTreeMap<usize, usize>> {
    let world = figure.host("world");
    world.write_file("/run/subjects.py", SUBJECTS_PY.as_bytes())?;
    let seen = world.text(&format!("python3 /run/subjects.py {MAIL_EXTERNAL} {PASSWORD} {}", READERS.join(" ")))?;
    let number = |line: &str| line.strip_prefix("Subject: letter ")?.strip_suffix('.')?.parse::<usize>().ok();
    let mut found = BTreeMap::new();
    for number in seen.lines().filter_map(number) {
        *found.entry(number).or_default() += 1;
    }
    Ok(found)
}

/// Waits until all that was taken has arrived; returns how many came more than once.
pub fn all_arrive(figure: &Figure, taken: &[usize], limit: Duration) -> Result<usize> {
    eventually(limit, "all letters that were taken", || {
        let found = arrived(figure)?;
        let lost: Vec<&usize> = taken.iter().filter(|number| !found.contains_key(number)).collect();
        ensure!(lost.is_empty(), "{} of {} are not there: {lost:?}", lost.len(), taken.len());
        Ok(found.values().filter(|count| **count > 1).count())
    })
}

/// The queue that a server filled, as the panel knows it.
fn queue(figure: &Figure, of: &str) -> Result<serde_json::Value> {
    let all = figure.json("queue list")?;
    let found = all["items"].as_array().context("a list")?.iter().find(|queue| queue["server"] == of).cloned();
    found.context("there is such a queue")
}

fn is_active(figure: &Figure, node: &str, unit: &str) -> Result<bool> {
    Ok(figure.host(node).run(&format!("systemctl is-active {unit}"))?.success())
}

/// So many letters wait in the queue of mail2. Nothing leaves it while it is filled: its way to the mailboxes is closed, and nobody opens it again.
/// Nothing is judged, which takes long.
fn queued(figure: &Figure, count: usize) -> Result<Vec<usize>> {
    figure.host("mail2").text("systemctl stop phalanx-agent && systemctl stop phalanx-mail-router phalanx-filter")?;
    let mut sending = letters(figure, &figure.address("mail2")?, 1, count)?;
    eventually(LONG, "that the letters are sent", || {
        ensure!(!sending.is_running()?, "{} so far", taken(&sending.stdout()).len());
        Ok(())
    })?;
    let taken = taken(&sending.stdout());
    ensure!(taken.len() == count, "{} were taken: {}", taken.len(), sending.stdout());
    Ok(taken)
}

/// A thousand letters wait in the queue of mail2, some of them on their way out of it, when it dies.
fn filled(figure: &Figure) -> Result<Vec<usize>> {
    let taken = queued(figure, LETTERS)?;
    let mail2 = figure.host("mail2");
    mail2.text("systemctl start phalanx-mail-router && postqueue -c /var/lib/phalanx/live/postfix -f")?;
    eventually(LONG, "that letters leave the queue", || {
        let count = arrived(figure)?.len();
        ensure!(count > 0, "none has");
        Ok(())
    })?;
    // What a letter is called while it comes in, before it has a name: who dies then leaves such a file.
    let queue = mail2.text("postconf -c /var/lib/phalanx/live/postfix -h queue_directory")?;
    mail2.text(&format!("runuser -u postfix -- sh -c 'umask 077; : > {}/incoming/123456.789'", queue.trim()))?;
    mail2.kill()?;
    let left = LETTERS - arrived(figure)?.len();
    println!("{left} letters were in the queue of mail2 when it died");
    ensure!(left > LETTERS / 4, "only {left} letters were left");
    Ok(taken)
}

/// One command has mail1 run the queue of mail2, which is lost: every letter that was answered with 250 arrives.
#[test]
fn a_lost_nodes_queue_is_adopted() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let taken = filled(figure)?;
        not_without_a_fence(figure)?;
        let _switch = figure.power_switch(&["mail2"])?;
        figure.phalanx("queue adopt mail2 --to mail1")?;
        ensure!(queue(figure, "mail2")?["holder"] == "mail1" && queue(figure, "mail2")?["number"] == 2);
        ensure!(figure.json("server show mail2")?["fenced"]["boot"].is_string(), "it was fenced by the switch");
        it_is_counted(figure)?;
        // Each letter that waited long for its first try waits for its next; a person is impatient.
        eventually(LONG, "a flush", || figure.phalanx("queue flush mail2").map(drop))?;
        let twice = all_arrive(figure, &taken, LONG)?;
        println!("{twice} letters came twice: they were being delivered when mail2 died");
        ensure!(twice <= 20, "{twice} letters came twice, more than Postfix delivers at a time");
        eventually(LONG, "an empty queue", || {
            let content = figure.json("queue show mail2")?["content"].clone();
            ensure!(content["messages"] == 0, "{content}");
            Ok(())
        })?;
        alone_it_does_not_start(figure)?;
        it_comes_home(figure)
    })
}

/// What the node that runs the queue says of it, while nothing leaves it, is what Postfix lists.
fn it_is_counted(figure: &Figure) -> Result<()> {
    eventually(LONG, "a hold", || figure.phalanx("queue hold mail2 --all").map(drop))?;
    eventually(LONG, "that mail1 counts the queue of mail2", || {
        let content = figure.json("queue show mail2")?["content"].clone();
        let queues = figure.report("mail1")?["queues"].clone();
        let told = queues.as_array().into_iter().flatten().find(|queue| queue["of"] == "mail2");
        let count = &told.context("mail2's is not told")?["count"];
        ensure!(count["held"].as_u64() > Some(LETTERS as u64 / 10), "most letters are held: {queues}");
        ensure!(
            count["messages"] == content["messages"] && count["held"] == content["held"],
            "{queues}, {content:.80}"
        );
        Ok(())
    })?;
    figure.phalanx("queue release mail2 --all").map(drop)
}

/// mail2 is off, but nobody has seen it: its queue stays, and who asks is told what to do.
fn not_without_a_fence(figure: &Figure) -> Result<()> {
    eventually(LONG, "that the panel has heard nothing of mail2 for a while", || {
        let refused = figure.host("cp").run("phalanx queue adopt mail2 --to mail1")?;
        ensure!(!refused.success(), "it moved: {}", refused.stdout);
        ensure!(refused.stderr.contains("--confirm 'mail2 is switched off'"), "{}", refused.stderr);
        Ok(())
    })?;
    let refused = figure.host("cp").run("phalanx queue adopt mail2 --to mail1 --confirm 'yes'")?;
    ensure!(!refused.success() && refused.stderr.contains("nobody has said that it is off"), "{}", refused.stderr);
    ensure!(queue(figure, "mail2")?["holder"] == "mail2", "its queue stays");
    Ok(())
}

/// mail2 has power again, and hears nobody: it still has the configuration by which the queue is its own, and the share tells it another thing.
fn alone_it_does_not_start(figure: &Figure) -> Result<()> {
    figure.host("cp").text("systemctl stop phalanx-panel")?;
    figure.host("mail1").text("systemctl stop phalanx-agent")?;
    let mail2 = figure.host("mail2");
    mail2.boot()?;
    eventually(LONG, "that Postfix of mail2 is kept from starting", || {
        let said = mail2.text("journalctl -u phalanx-postfix -b --no-pager | tail -n 50")?;
        ensure!(said.contains("queue-mail2 of cluster mail belongs to mail1 by now, under number 2"), "{said}");
        Ok(())
    })?;
    ensure!(mail2.text("pgrep -x master || true")?.is_empty(), "a Postfix runs on mail2");
    ensure!(is_active(figure, "mail1", "phalanx-adopted-queues")?, "mail1 runs it");
    figure.host("mail1").text("systemctl start phalanx-agent")?;
    figure.host("cp").text("systemctl start phalanx-panel").map(drop)
}

/// mail2 hears the panel again: its queue comes home, and it takes mail.
fn it_comes_home(figure: &Figure) -> Result<()> {
    eventually(LONG, "that mail2 has its queue again", || {
        let queue = queue(figure, "mail2")?;
        ensure!(queue["holder"] == "mail2" && queue["moving_to"].is_null() && queue["number"] == 3, "{queue}");
        Ok(())
    })?;
    ensure!(figure.json("server show mail2")?["fenced"].is_null(), "it takes part again");
    figure.host("mail2").text("echo nameserver 198.51.100.100 > /etc/resolv.conf")?;
    figure.settled(&MAIL_NODES)?;
    ensure!(!is_active(figure, "mail1", "phalanx-adopted-queues")?, "mail1 has let go of it");
    let mut sending = letters(figure, &figure.address("mail2")?, LETTERS + 1, 5)?;
    eventually(LONG, "that letters are sent through mail2", || {
        ensure!(!sending.is_running()?, "{}", sending.stdout());
        Ok(())
    })?;
    let taken = taken(&sending.stdout());
    ensure!(taken.len() == 5, "{}", sending.stdout());
    all_arrive(figure, &taken, LONG).map(drop)
}

/// On real NFS: a queue that is handed over by nodes that live, and the queue of a node that is lost with its locks. Meanwhile the NAS's agent dies at each
/// step of other changes of queues.
#[test]
#[ignore = "eight minutes on guests with a kernel of their own: `make soak` runs it"]
fn mail_nfs() -> Result<()> {
    Figure::scenario_mail_nfs(|figure| {
        Flow::prepare(figure, &[])?;
        for node in MAIL_NODES {
            let queue = figure.host(node).text(&format!("findmnt -n -t nfs4 -o OPTIONS /srv/phalanx/queue@{node}"))?;
            ensure!(queue.contains("hard") && queue.contains("vers=4.2"), "{queue}");
            // What other nodes run is reached through the share's own export at most, where root is nobody: no Postfix starts on it.
            let other = MAIL_NODES.into_iter().find(|other| *other != node).context("another node")?;
            let line = format!(
                "mount -t nfs4 -o retry=0 10.9.0.20:/srv/nas/mail/.phalanx/queues/{other} /mnt && ! touch /mnt/x && umount /mnt"
            );
            figure.host(node).text(&line).with_context(|| format!("{node} and the queue of {other}"))?;
        }
        crash_points::a_queue_comes(figure)?;
        let goes_to = |to: &str, number: u64| {
            figure.phalanx(&format!("queue adopt mail2 --to {to}"))?;
            let queue = queue(figure, "mail2")?;
            ensure!(queue["holder"] == to && queue["number"] == number, "{queue}");
            figure.settled(&MAIL_NODES)
        };
        goes_to("mail1", 2)?;
        ensure!(is_active(figure, "mail1", "phalanx-adopted-queues")?, "mail1 runs it");
        ensure!(!is_active(figure, "mail2", "phalanx-postfix")?, "mail2 has let go of it");
        goes_to("mail2", 3)?;
        // What waits in it when it dies, with Postfix' locks on the server.
        let taken = queued(figure, 100)?;
        let locks = figure.host("nas").text("grep -c POSIX /proc/locks || true")?;
        ensure!(locks != "0", "nobody holds a lock");
        figure.host("mail2").kill()?;
        let _switch = figure.power_switch(&["mail2"])?;
        figure.phalanx("queue adopt mail2 --to mail1")?;
        ensure!(figure.json("server show mail2")?["fenced"]["boot"].is_string(), "it was fenced by the switch");
        eventually(LONG, "a flush", || figure.phalanx("queue flush mail2").map(drop))?;
        let twice = all_arrive(figure, &taken, LONG)?;
        ensure!(twice == 0, "{twice} letters came twice, and none was being delivered");
        let exports = figure.host("nas").text("exportfs -s")?;
        ensure!(!exports.contains("10.9.0.42"), "a fenced node may mount: {exports}");
        Ok(())
    })
}

/// The mailboxes of a node that is lost open elsewhere once it is fenced, and not before; here by a person's word.
#[test]
fn a_lost_nodes_mailboxes_move() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        figure.phalanx("cluster move-grant mail mailboxes --to mail2")?;
        let holds = |node: &str| {
            eventually(LONG, &format!("that {node} opens mailboxes"), || {
                let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
                ensure!(grant["holder"] == node && grant["moving_to"].is_null(), "{grant}");
                let url = format!("imaps://{MAIL_EXTERNAL}/INBOX");
                figure.mail_curl(READERS[0], &url, "-X NOOP").map(drop)
            })
        };
        holds("mail2")?;
        let refused = figure.host("cp").run("phalanx server fence mail2 --confirm 'mail2 is switched off'")?;
        ensure!(!refused.success() && refused.stderr.contains("it lives"), "{}", refused.stderr);
        let sending = letters_at(figure, MAIL_EXTERNAL, 1, 4, (1, 0.0))?;
        eventually(LONG, "that letters are taken", || {
            let taken = taken(&sending.stdout());
            ensure!(taken.len() == 4, "{taken:?}");
            all_arrive(figure, &taken, LONG)
        })?;
        figure.host("mail2").kill()?;
        // What a process leaves that dies while it writes to a mailbox. Its name is that of the holder, not of the node: nobody waits for it.
        let left = figure.host("nas").text(&format!(
            "cd /srv/nas/mail/mail/example.org/{}.*/Maildir && ls new cur | grep -c '[.]mailboxes[,:]' && \
             printf 3999999:mailboxes > dovecot-uidlist.lock && chown --reference=dovecot-uidlist dovecot-uidlist.lock",
            READERS[0].split('@').next().unwrap_or_default()
        ))?;
        ensure!(left.trim() != "0", "letters are named after the holder");
        figure.phalanx("cluster move-grant mail mailboxes --to mail1")?;
        eventually(LONG, "that somebody is told what to do", || {
            let said = figure.phalanx("status")?;
            ensure!(said.contains("phalanx server fence mail2"), "{said}");
            Ok(())
        })?;
        let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
        ensure!(grant["holder"] == "mail2" && grant["moving_to"] == "mail1", "nobody has seen mail2 off: {grant}");
        figure.phalanx("server fence mail2 --confirm 'mail2 is switched off'")?;
        holds("mail1")?;
        // It comes back and hears nobody. By its configuration the mailboxes are its own.
        figure.host("cp").text("systemctl stop phalanx-panel")?;
        figure.host("mail1").text("systemctl stop phalanx-agent")?;
        figure.host("mail2").boot()?;
        eventually(LONG, "that Dovecot of mail2 is kept from starting", || {
            let said = figure.host("mail2").text("journalctl -u phalanx-mailboxes -b --no-pager | tail -n 50")?;
            ensure!(said.contains("mailboxes of cluster mail belongs to mail1 by now, under number 3"), "{said}");
            Ok(())
        })?;
        ensure!(figure.host("mail2").text("pgrep -f '[m]ailboxes.conf' || true")?.is_empty(), "it opens mailboxes");
        figure.host("mail1").text("systemctl start phalanx-agent")?;
        figure.host("cp").text("systemctl start phalanx-panel")?;
        figure.settled(&MAIL_NODES)?;
        ensure!(figure.json("server show mail2")?["fenced"].is_null(), "it takes part again");
        let said = figure.mail_curl(READERS[0], &format!("imaps://{MAIL_EXTERNAL}/INBOX"), "-X NOOP")?;
        ensure!(!said.contains(PASSWORD), "{said}");
        Ok(())
    })
}
