//! What is written for mail daemons is judged by their own checkers before it goes live; here each checker is shown a generation that a hand has
//! spoiled, and must say so in its own words.

use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::MAIL_NODES;
use std::time::Duration;

/// How a generation is spoiled, in shell within its directory, and the words that must be said of it.
const SPOILED: [(&str, &str); 12] = [
    (
        "sed -i 's/^smtpd_forbid_bare_newline/smtpd_forbid_bare_newlin/' postfix/main.cf",
        "unused parameter: smtpd_forbid_bare_newlin",
    ),
    ("echo 'no equals sign' >> postfix/main.cf", "missing '=' after attribute name"),
    ("sed -i 's/^qmgr .*/qmgr unix n - n often 1 qmgr/' postfix/master.cf", "invalid wakeup field"),
    ("sed -i 's/ inet n - n - - smtpd/ inte n - n - - smtpd/' postfix/master.cf", "inte"),
    ("sed -i 's/^anvil .*/anvil unix/' postfix/master.cf", "master.cf: line"),
    ("echo 'no pattern' >> postfix/lmtp_replies", "lmtp_replies, line 3"),
    ("sed -i 's/(\\.\\*)/(.*/' postfix/commands", "commands, line 1"),
    ("echo 'mail_colour = red' >> mailboxes.conf", "Unknown setting: mail_colour"),
    ("sed -i 's/^service lmtp {/service lmtp/' mailboxes.conf", "mailboxes.conf"),
    ("echo 'auth_failure_delay = soon' >> logins.conf", "Invalid time interval: soon"),
    ("echo 'rates {' >> rspamd/local.d/ratelimit.conf", "ratelimit.conf"),
    ("echo 'end end' >> rspamd/rspamd.local.lua", "rspamd.local.lua"),
];

#[test]
fn mail_bad_config() -> Result<()> {
    Figure::scenario_mail(|figure| {
        let node = figure.host("mail1");
        let live = node.text("readlink -f /var/lib/phalanx/live")?;
        let said = node.text("phalanx agent check /var/lib/phalanx/live")?;
        ensure!(said.contains("find nothing wrong"), "{said}");
        let mut wrong = Vec::new();
        for (number, (line, words)) in SPOILED.iter().enumerate() {
            let number = number + 1;
            let copy = format!("/run/spoiled/generations/{number}");
            node.text(&format!("mkdir -p /run/spoiled/generations && cp -r {live} {copy} && cd {copy} && {line} && ! diff -rq {live} {copy} > /dev/null"))?;
            let found = node.run(&format!("phalanx agent check {copy}"))?;
            let said = format!("{}{}", found.stdout, found.stderr);
            // The last lines name what was looked at; those are not the daemon's words.
            if found.success() || !said.contains(words) {
                wrong.push(format!("{line}: {said:?} does not say {words:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        figure.settled(&MAIL_NODES)?;
        rivals_are_named(figure)
    })
}

/// Debian's own daemons on the node that opens mailboxes, each with the unit whose ports it takes and what whoever looks is told. Debian's Postfix
/// and Redis get on with ours; a Dovecot on the other node is ended, since it could open mailboxes.
const RIVALS: [(&str, &str, &str); 3] = [
    ("rspamd", "phalanx-filter", "`systemctl disable --now rspamd.service`"),
    ("postsrsd", "phalanx-senders", "`systemctl disable --now postsrsd.service`"),
    ("dovecot", "phalanx-mail-router", "phalanx-mail-router can't listen on 10.9.0.41:143"),
];

/// They take the ports while ours are down: whoever looks is told, and all is well once they are ended as it says.
fn rivals_are_named(figure: &Figure) -> Result<()> {
    let node = figure.host("mail1");
    let ours = RIVALS.map(|(_, ours, _)| ours).join(" ");
    // Without the mask the agent is quicker.
    node.text(&format!("systemctl mask --quiet --runtime --now {ours}"))?;
    let theirs = RIVALS.map(|(theirs, ..)| theirs).join(" ");
    node.text(&format!("systemctl start {theirs} && systemctl unmask --quiet --runtime {ours}"))?;
    eventually(Duration::from_secs(90), "that they are named", || {
        let problems = figure.report("mail1")?["problems"].to_string();
        let untold: Vec<&str> =
            RIVALS.iter().map(|(_, _, words)| *words).filter(|words| !problems.contains(words)).collect();
        ensure!(untold.is_empty(), "{untold:?} is missing in {problems}");
        Ok(())
    })?;
    node.text(&format!("systemctl disable --quiet --now {theirs}"))?;
    figure.settled(&MAIL_NODES)
}
