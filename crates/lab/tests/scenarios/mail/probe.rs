//! What a balancer finds by logging in with the probe mailbox: a node that answers and lets nobody in; and that nobody else gets in with it.

use super::MAIL_NODES;
use super::flow::Flow;
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{MAIL_EXTERNAL, PASSWORD};
use std::time::Duration;

/// Ports that the balancer logs in to.
const PORTS: [u16; 4] = [110, 143, 993, 995];
/// Three failures or successes, and the time that Dovecot lets a login wait.
const NOTICED: Duration = Duration::from_secs(60);
const LOGINS: &str = "/var/lib/phalanx/mail/logins/logins.sqlite";
const LOG: &str = "/var/log/phalanx/mailboxes.log";

/// How the balancer sees `server` at `port`: its state, and why.
fn seen(figure: &Figure, server: &str, port: u16) -> Result<(String, String)> {
    let status = figure.json("status")?;
    let services = status["balancers"][0]["services"].as_array().context("services")?;
    let service = services.iter().find(|service| service["port"] == port).context("the service")?;
    let backends = service["backends"].as_array().context("backends")?;
    let backend = backends.iter().find(|backend| backend["server"] == server).context("the backend")?;
    let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("why")))
}

fn all_are(figure: &Figure, state: &str, why: &str) -> Result<()> {
    for node in MAIL_NODES {
        for port in PORTS {
            let (is, because) = seen(figure, node, port)?;
            ensure!(is == state && because.contains(why), "{node}:{port} is {is}: {because}");
        }
    }
    Ok(())
}

/// Waits until each of the ports of each node was logged in to since the log had `from` lines.
fn logged_in(figure: &Figure, holder: &str, from: usize) -> Result<()> {
    eventually(NOTICED, "logins with the probe mailbox", || {
        let lines = format!("tail -n +{} {LOG} | grep 'Login: user=<phalanx-probe>' | grep -c ", from + 1);
        for (protocol, count) in [("imap-login", 4), ("pop3-login", 4)] {
            let found: usize =
                figure.host(holder).text(&format!("{lines} {protocol} || true"))?.trim().parse().context("a number")?;
            ensure!(found >= count, "{found} logins by {protocol}");
        }
        Ok(())
    })
}

#[test]
fn mail_probe_login() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let holder = figure.host("mail1");
        logged_in(figure, "mail1", 0)?;
        // A loaded machine may take its time for a check in between.
        eventually(NOTICED, "that all are up", || all_are(figure, "up", ""))?;
        nobody_else_gets_in(figure)?;
        is_on_no_list(figure)?;

        // The look-up file for logins is away, and nobody is there to make it anew. Dovecot answers as before.
        holder.text(&format!("systemctl stop phalanx-agent phalanx-guard; mkdir /run/away; mv {LOGINS}* /run/away/; doveadm -c /var/lib/phalanx/live/mailboxes.conf reload"))?;
        eventually(NOTICED, "that nobody gets in is seen", || all_are(figure, "down", "the probe's"))?;
        let ask = "exec 3<>/dev/tcp/10.9.0.41/143; printf 'a CAPABILITY\\r\\nb LOGOUT\\r\\n' >&3; timeout 5 cat <&3";
        let said = figure.host("lb").text(&format!("bash -c \"{ask}\""))?;
        ensure!(said.contains("a OK"), "Dovecot answers all the time: {said}");
        let picture = figure.phalanx("status")?;
        ensure!(picture.contains("imap") && picture.contains("pop3"), "a person sees it: {picture}");
        let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
        ensure!(grant["holder"] == "mail1" && grant["number"] == 1, "mailboxes stay where they are: {grant}");
        // Its agent makes the file anew.
        holder.text("systemctl start phalanx-guard phalanx-agent")?;
        eventually(NOTICED, "that people get in again is seen", || all_are(figure, "up", ""))?;
        Ok(())
    })
}

/// With the right password, from anywhere but a balancer, and by anything but IMAP and POP3.
fn nobody_else_gets_in(figure: &Figure) -> Result<()> {
    let file = "/var/lib/phalanx/live/proxy-secret-probes.json";
    let lb = figure.host("lb");
    let mode = lb.text(&format!("stat -L -c '%a %U %G' {file}"))?;
    ensure!(mode.trim() == "640 root phalanx-proxy", "who may read the password: {mode}");
    let probes: serde_json::Value = serde_json::from_str(&lb.text(&format!("cat {file}"))?)?;
    let password = probes["mail"]["password"].as_str().context("a password")?.to_owned();
    let try_as = |host: &str, url: &str| {
        let line = format!("curl -sSk -m 20 -u 'phalanx-probe:{password}' '{url}' 2>&1");
        anyhow::Ok((figure.host(host).run(&line)?.success(), figure.host(host).run(&line)?.stdout))
    };
    let own = try_as("lb", "imaps://10.9.0.41/INBOX")?;
    ensure!(own.0, "the balancer gets in: {}", own.1);
    for url in [
        format!("imaps://{MAIL_EXTERNAL}/INBOX"),
        format!("pop3s://{MAIL_EXTERNAL}/"),
        "imaps://10.9.0.41/INBOX".to_owned(),
        "imaps://10.9.0.42/INBOX".to_owned(),
    ] {
        let (is_in, said) = try_as("world", &url)?;
        ensure!(!is_in && said.contains("denied"), "{url} from the world: {said}");
    }
    // Neither by submission nor for rules, from the balancer's own address.
    let line = format!(
        "swaks --server 10.9.0.41:587 --tls --timeout 20 --auth LOGIN --auth-user phalanx-probe --auth-password {password} \
         --from info@example.org --to ann@far.example --quit-after AUTH 2>&1"
    );
    for host in ["lb", "world"] {
        let said = figure.host(host).run(&line)?.stdout;
        ensure!(said.contains("535"), "submission from {host}: {said}");
    }
    // It gets no mail.
    for recipient in ["phalanx-probe@example.org", "phalanx-probe@mail.example.net", "phalanx-probe"] {
        let said =
            figure.swaks(MAIL_EXTERNAL, &format!("--from ann@far.example --to {recipient} --quit-after RCPT"))?;
        ensure!(said.contains("<** 550") || said.contains("<** 504"), "{recipient}: {said}");
    }
    // A customer's mailbox still gets in from the world.
    let line = format!("curl -sSk -m 20 -u 'info@example.org:{PASSWORD}' 'imaps://{MAIL_EXTERNAL}/INBOX'");
    figure.host("world").text(&line).map(drop)
}

fn is_on_no_list(figure: &Figure) -> Result<()> {
    for list in ["mailbox list", "mail-domain list", "account list", "alias list"] {
        let text = figure.json(list)?.to_string();
        ensure!(!text.contains("probe"), "{list}: {text}");
    }
    Ok(())
}
