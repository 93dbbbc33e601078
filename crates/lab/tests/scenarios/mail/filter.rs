//! What the filter is for: senders are checked, what is doubtful is delayed, what is learned counts, and a login has its limit; all of it shared by the
//! nodes, through a memory on the master. Losing that weakens the filter and stops no mail.

use super::flow::{Flow, TAKEN, send};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD, SIGNED, SIGNED_KEY, STRICT};
use std::time::Duration;

const LETTER_PY: &str = include_str!("letter.py");
const LIMIT_PY: &str = include_str!("limit.py");
const INFO: &str = "info@example.org";
const LATER: &str = "451 4.7.1 Try again later";
const LONG: Duration = Duration::from_secs(60);
/// redis-cli(1) with the memory's address and password.
const MEMORY: &str = "conf=/var/lib/phalanx/live/secret-redis.conf; export REDISCLI_AUTH=$(sed -n 's/^requirepass //p' $conf); \
    memory() { redis-cli -h 10.9.0.41 -p 6390 \"$@\"; }";

#[test]
fn mail_filter() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        senders_are_checked(figure)?;
        delayed_on_one_node_and_taken_on_another(figure)?;
        learned_on_one_node_and_known_on_another(figure)?;
        a_login_has_its_limit(figure)?;
        without_memory(figure)?;
        without_the_master(figure)
    })
}

/// SPF, DKIM and DMARC: what was found stands in the letter, and nobody else's word for it.
fn senders_are_checked(figure: &Figure) -> Result<()> {
    let world = figure.host("world");
    world.write_file("/run/letter.py", LETTER_PY.as_bytes())?;
    let mut wrong = Vec::new();
    for (subject, spoil, found) in [
        ("whole", "cat", ["dkim=pass", "spf=pass", "dmarc=pass"]),
        ("changed", "sed 's/weather/money/'", ["dkim=fail", "spf=pass", "dmarc=pass"]),
    ] {
        let said = world.text(&format!(
            "python3 /run/letter.py {SIGNED_KEY} ann@{SIGNED} {INFO} {subject} | {spoil} > /run/letter && \
             swaks --server {MAIL_EXTERNAL} --timeout 20 --helo world.{FAR} --from ann@{SIGNED} --to {INFO} --data /run/letter 2>&1"
        ))?;
        ensure!(said.contains(TAKEN), "{said}");
        let letter = figure.has_mail(INFO, &[&format!("Subject: {subject}\r\n")])?;
        let head = letter.replace("\r\n\t", " ");
        let results: Vec<&str> = head.lines().filter(|line| line.starts_with("Authentication-Results:")).collect();
        let is_right = results.len() == 1
            && results[0].contains(" mail.example.net;")
            && found.iter().all(|word| results[0].contains(word));
        if !is_right {
            wrong.push(format!("{subject}: {results:?} is not {found:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A letter in a name of a domain that would have it refused, by its own words. A sender that was delayed once is known
/// from then on, and so is a text.
fn doubtful(figure: &Figure, node: &str, who: &str) -> Result<String> {
    let words = format!(
        "--from {who}@{STRICT} --to {INFO} --h-From {who}@{STRICT} --header 'Subject: from {who}' --body 'I am the {who}.'"
    );
    figure.swaks(&figure.address(node)?, &words)
}

fn delayed_on_one_node_and_taken_on_another(figure: &Figure) -> Result<()> {
    let said = doubtful(figure, "mail1", "ceo")?;
    ensure!(said.contains(LATER), "{said}");
    let said = doubtful(figure, "mail2", "ceo")?;
    ensure!(said.contains(LATER), "it is too early on the other node, too: {said}");
    // Five minutes are long: what is remembered is made older.
    let older = format!(
        "{MEMORY}; for key in $(memory --scan --pattern 'rg*'); do memory set $key $(($(memory get $key | cut -d. -f1) - 400)) KEEPTTL; done"
    );
    let said = figure.host("mail1").text(&older)?;
    ensure!(said.contains("OK"), "nothing was remembered: {said}");
    let said = doubtful(figure, "mail2", "ceo")?;
    ensure!(said.contains(TAKEN), "mail2 knows nothing of mail1's delay: {said}");
    figure.has_mail(INFO, &["Subject: from ceo"]).map(drop)
}

fn learned_on_one_node_and_known_on_another(figure: &Figure) -> Result<()> {
    let learned = |node: &str| -> Result<u64> {
        let said = figure.host(node).text("rspamc -h 127.0.0.1:11334 stat")?;
        let line = said.lines().find(|line| line.contains("BAYES_SPAM")).with_context(|| said.clone())?;
        let count = line.split("learned:").nth(1).and_then(|rest| rest.trim().split([';', ' ']).next());
        count.and_then(|count| count.parse().ok()).with_context(|| format!("no count in {line:?}"))
    };
    let before = learned("mail2")?;
    let words = (1..60).map(|n| format!("pill{n}")).collect::<Vec<_>>().join(" ");
    let letter = format!("From: ceo@{STRICT}\r\nSubject: cheap pills\r\n\r\n{words}\r\n");
    figure.host("mail1").exec(&["rspamc", "-h", "127.0.0.1:11334", "learn_spam"], letter.as_bytes())?.text()?;
    eventually(LONG, "that mail2 knows what mail1 has learned", || {
        let after = learned("mail2")?;
        ensure!(after == before + 1, "{before}, then {after}");
        Ok(())
    })
}

/// One login at both nodes in turns: what is taken of it is counted together.
fn a_login_has_its_limit(figure: &Figure) -> Result<()> {
    let world = figure.host("world");
    world.write_file("/run/limit.py", LIMIT_PY.as_bytes())?;
    let nodes = [figure.address("mail1")?, figure.address("mail2")?].join(" ");
    let said = world.text(&format!("python3 /run/limit.py boss@example.org {PASSWORD} 230 {nodes}"))?;
    let (taken, refused): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("250 "));
    println!("{} letters of one login were taken, then: {:?}", taken.len(), refused.first());
    ensure!((200..=212).contains(&taken.len()), "{} were taken of 200 at a time: {said}", taken.len());
    ensure!(refused.iter().all(|line| line.starts_with("451 4.7.1 ")), "{refused:?}");
    // Another one is not concerned.
    let login = format!("--port 587 --tls --auth PLAIN --auth-user {INFO} --auth-password {PASSWORD}");
    let said = figure.swaks(MAIL_EXTERNAL, &format!("{login} --from {INFO} --to bob@{FAR} --h-From {INFO}"))?;
    ensure!(said.contains(TAKEN), "{said}");
    Ok(())
}

/// In from the world, and out from a login, signed.
fn mail_goes_on(figure: &Figure, server: &str, tag: &str) -> Result<()> {
    let ann = format!("--from ann@{FAR} --to {INFO} --h-To {INFO} --header 'Subject: in {tag}'");
    let said = figure.swaks(server, &ann)?;
    ensure!(said.contains(TAKEN), "{said}");
    figure.has_mail(INFO, &[&format!("Subject: in {tag}\r\n")])?;
    let login = format!("--port 587 --tls --auth PLAIN --auth-user {INFO} --auth-password {PASSWORD}");
    let out = format!("{login} --from {INFO} --to bob@{FAR} --h-From {INFO} --header 'Subject: out {tag}'");
    let said = figure.swaks(server, &out)?;
    ensure!(said.contains(TAKEN), "{said}");
    let subject = format!("Subject: out {tag}\r\n");
    let data = |message: &serde_json::Value| message["data"].as_str().unwrap_or_default().to_owned();
    let got = figure.world_got("what was sent", |message| data(message).contains(&subject))?;
    ensure!(data(&got).contains("DKIM-Signature:"), "it is not signed: {got}");
    Ok(())
}

/// The memory is gone, its host is there.
fn without_memory(figure: &Figure) -> Result<()> {
    let master = figure.host("mail1");
    master.text("systemctl stop phalanx-agent && systemctl stop phalanx-filter-memory")?;
    for node in MAIL_NODES {
        mail_goes_on(figure, &figure.address(node)?, &format!("without memory at {node}"))?;
    }
    // Weakened: what would be delayed is taken.
    let said = doubtful(figure, "mail2", "boss")?;
    ensure!(said.contains(TAKEN), "{said}");
    master.text("systemctl start phalanx-agent")?;
    figure.settled(&MAIL_NODES)?;
    eventually(LONG, "that letters are delayed again", || {
        let said = doubtful(figure, "mail2", "lawyer")?;
        ensure!(said.contains(LATER), "{said}");
        Ok(())
    })
}

/// The memory's host has no power: nothing answers, nothing refuses.
fn without_the_master(figure: &Figure) -> Result<()> {
    figure.phalanx("cluster move-grant mail mailboxes --to mail2")?;
    eventually(LONG, "that mail2 opens mailboxes", || {
        let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
        ensure!(grant["holder"] == "mail2" && grant["moving_to"].is_null(), "{grant}");
        Ok(())
    })?;
    figure.host("mail1").kill()?;
    mail_goes_on(figure, &figure.address("mail2")?, "without the master")?;
    let said = send(figure, &format!("ann@{FAR}"), INFO, "through the balancer")?;
    ensure!(said.contains(TAKEN), "{said}");
    figure.has_mail(INFO, &["Subject: through the balancer\r\n"]).map(drop)
}
