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
        a_rival_is_named(figure)
    })
}

/// Debian's own Postfix takes the ports while ours is down: whoever looks is told which unit that is and what ends it.
fn a_rival_is_named(figure: &Figure) -> Result<()> {
    let node = figure.host("mail2");
    // Without the mask the agent is quicker.
    node.text("systemctl mask --quiet --runtime --now phalanx-postfix && systemctl start postfix")?;
    node.text("systemctl unmask --quiet --runtime phalanx-postfix")?;
    eventually(Duration::from_secs(60), "that the rival is named", || {
        let problems = figure.report("mail2")?["problems"].to_string();
        ensure!(problems.contains("`systemctl disable --now postfix.service`"), "{problems}");
        Ok(())
    })?;
    node.text("systemctl disable --quiet --now postfix.service")?;
    figure.settled(&MAIL_NODES)
}
