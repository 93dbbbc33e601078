//! What was accepted, asked back from the daemons that it is for, on every node: httpd for names, document roots and directives, PHP for its
//! version, systemd and the kernel for limits, nftables for weights and addresses.

use super::PATIENCE;
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure, LOGICAL, NODES};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The launcher looks every five seconds whether accounts that are awake have changed.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(20);
/// Numbers of which some are no limits of memory, and some no weights.
const NUMBERS: [u64; 9] = [0, 1, 7, 30, 63, 64, 100, 101, 300];

type Accepted = BTreeMap<String, Vec<String>>;

/// Asks all of them.
pub fn have_it(figure: &Figure, accepted: &Accepted, texts: &[String]) -> Result<()> {
    sites(figure, accepted)?;
    homes(figure, accepted)?;
    versions(figure, accepted)?;
    limits(figure)?;
    weights(figure)?;
    addresses(figure)?;
    directives(figure, texts)
}

fn of<'a>(accepted: &'a Accepted, fields: &[&str]) -> BTreeSet<&'a String> {
    fields.iter().filter_map(|field| accepted.get(*field)).flatten().collect()
}

/// Changes something that must be taken.
fn set(figure: &Figure, method: &str, path: &str, body: &Value) -> Result<Value> {
    let (status, answer) = figure.api(method, path, Some(body))?;
    ensure!((200..300).contains(&status), "{method} {path} {body}: {status} {answer}");
    Ok(answer)
}

/// The page is there, on each node.
pub fn serves(figure: &Figure, host: &str, path: &str, page: &str) -> Result<()> {
    NODES.iter().try_for_each(|node| {
        eventually(PATIENCE, &format!("the page of {host} on {node}"), || {
            let answer = figure.get_from(node, host, path)?;
            ensure!(answer.status == 200 && answer.body == page, "{answer:?}");
            Ok(())
        })
    })
}

/// Each document root and each host name serves a page of its own.
fn sites(figure: &Figure, accepted: &Accepted) -> Result<()> {
    let names = of(accepted, &["/sites/name", "/sites/aliases/0", "/sites/ada.example.org/aliases/1"]);
    ensure!(names.len() >= 6, "{accepted:?}");
    let roots = of(accepted, &["/sites/document_root", "/sites/ada.example.org/document_root"]);
    ensure!(roots.len() >= 4, "{accepted:?}");
    figure.put("ada", "sites/ada.example.org/index.html", "page of ada")?;
    let pages: Vec<(String, &String)> =
        roots.into_iter().enumerate().map(|(number, root)| (format!("root{number}.example.org"), root)).collect();
    let id = figure.json("account show ada")?["uid"].to_string();
    let mut script = String::from("cd /srv/nas/web/home/ada\n");
    for (host, root) in &pages {
        set(figure, "POST", "/sites", &json!({"name": host, "account": "ada", "document_root": root}))?;
        // What is accepted has no quotes in it: the script's own quoting would fail loudly.
        script += &format!("mkdir -p './{root}' && printf %s '{host} below {root}' > './{root}/{host}.html'\n");
    }
    let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-eu"];
    figure.host("nas").exec(&words, script.as_bytes())?.text()?;
    for (host, root) in &pages {
        serves(figure, host, &format!("/{host}.html"), &format!("{host} below {root}"))?;
    }
    set(figure, "PATCH", "/sites/ada.example.org", &json!({"aliases": names}))?;
    names.into_iter().try_for_each(|name| serves(figure, name, "/", "page of ada"))
}

fn homes(figure: &Figure, accepted: &Accepted) -> Result<()> {
    for account in of(accepted, &["/accounts/name"]) {
        let answer = set(figure, "POST", "/accounts", &json!({"name": account, "logical_server": LOGICAL}))?;
        let uid = answer["uid"].to_string();
        eventually(PATIENCE, &format!("the home of {account}"), || {
            let owner = figure.host("nas").text(&format!("stat -c %u:%g:%a '/srv/nas/web/home/{account}'"))?;
            ensure!(owner == format!("{uid}:{uid}:750"), "{owner}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The version of PHP that was accepted is the one that runs.
fn versions(figure: &Figure, accepted: &Accepted) -> Result<()> {
    figure.put("ada", "sites/ada.example.org/version.php", "<?php echo PHP_MAJOR_VERSION, '.', PHP_MINOR_VERSION;")?;
    let versions = of(accepted, &["/accounts/php", "/accounts/ada/php"]);
    ensure!(versions.iter().any(|version| *version == "8.2"), "{versions:?}");
    for version in versions.into_iter().map(String::as_str).chain(["8.2"]) {
        set(figure, "PATCH", "/accounts/ada", &json!({"php": version}))?;
        eventually(LAUNCHER_LIMIT, &format!("PHP {version}"), || {
            NODES.iter().try_for_each(|node| {
                let answer = figure.get_from(node, "ada.example.org", "/version.php")?;
                ensure!(answer.body == version, "{node}: {answer:?}");
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// Limits that were accepted are those of the account's slice, on each node.
fn limits(figure: &Figure) -> Result<()> {
    let uid = figure.json("account show ada")?["uid"].to_string();
    let mut taken = 0;
    for number in NUMBERS {
        let limits = json!({"memory_mib": number, "cpu_percent": number, "processes": number, "io_weight": number});
        let (status, answer) = figure.api("PATCH", "/accounts/ada", Some(&json!({ "limits": limits })))?;
        if status != 200 {
            ensure!(status == 422, "{limits}: {status} {answer}");
            continue;
        }
        taken += 1;
        ensure!(answer["limits"] == limits, "{limits}: {answer}");
        let mut expected = [
            format!("MemoryMax={}", number << 20),
            format!("CPUQuotaPerSecUSec={}", seconds(number)),
            format!("TasksMax={number}"),
            format!("IOWeight={number}"),
        ];
        expected.sort();
        eventually(LAUNCHER_LIMIT, &format!("{expected:?}"), || {
            NODES.iter().try_for_each(|node| {
                let seen = figure.host(node).text(&format!(
                    "systemctl show -p MemoryMax,CPUQuotaPerSecUSec,TasksMax,IOWeight phalanx-account-{uid}.slice | sort; \
                     group=$(systemctl show -p ControlGroup --value phalanx-account-{uid}.slice); \
                     cat /sys/fs/cgroup/pids$group/pids.max /sys/fs/cgroup$group/pids.max 2> /dev/null | head -n 1"
                ))?;
                ensure!(seen == format!("{}\n{number}", expected.join("\n")), "{node}: {seen}");
                Ok(())
            })
        })?;
    }
    ensure!(taken == 4, "{taken} of {NUMBERS:?} were taken as limits");
    let limits = json!({"memory_mib": 512, "cpu_percent": 100, "processes": 128, "io_weight": 100});
    set(figure, "PATCH", "/accounts/ada", &json!({ "limits": limits })).map(drop)
}

/// As systemd writes hundredths of a second.
fn seconds(percent: u64) -> String {
    match (percent / 100, percent % 100) {
        (whole, 0) => format!("{whole}s"),
        (0, rest) => format!("{}ms", rest * 10),
        (whole, rest) => format!("{whole}.{rest:02}0000s"),
    }
}

/// The rules of the balancer's kernel for an external address.
fn rules(figure: &Figure, external: &str) -> Result<String> {
    let (ip, port) = external.split_once(':').context("address and port")?;
    let rules =
        figure.host("lb").text("nft --numeric list chain ip phalanx_balancer prerouting")?.replace("\n\t\t\t", " ");
    let found = rules.lines().find(|line| line.contains(&format!("ip daddr {ip} tcp dport {port} ")));
    // nft breaks long lists.
    let at = found.and_then(|line| rules.find(line)).with_context(|| format!("{external} is not in {rules}"))?;
    let rest = &rules[at..];
    Ok(rest[..rest[5..].find("ip daddr 1").map_or(rest.len(), |end| end + 5)].to_owned())
}

/// A weight that was accepted is a part of the kernel's choices.
fn weights(figure: &Figure) -> Result<()> {
    let (one, two) = (figure.address("web1")?, figure.address("web2")?);
    for number in NUMBERS {
        let (status, answer) = figure.api("PATCH", "/clusters/web/nodes/web1", Some(&json!({ "weight": number })))?;
        ensure!((status == 200) == (1..=100).contains(&number), "weight {number}: {status} {answer}");
        if status != 200 {
            continue;
        }
        eventually(PATIENCE, &format!("weight {number} in nftables"), || {
            let rules = rules(figure, &format!("{EXTERNAL}:80"))?;
            let count = |ip: &str| rules.matches(&format!(": {ip} . 80")).count() as f64;
            let part = count(&one) / (count(&one) + count(&two));
            let expected = number as f64 / (number as f64 + 10.0);
            ensure!((part - expected).abs() < 0.02, "{part}, not {expected}: {rules}");
            Ok(())
        })?;
    }
    set(figure, "PATCH", "/clusters/web/nodes/web1", &json!({"weight": 10})).map(drop)
}

/// An address that was accepted is in the balancer's kernel, the internal one on its node's interface.
fn addresses(figure: &Figure) -> Result<()> {
    let external = "198.51.100.14:8090";
    let body = json!({"external": external, "balancer": "front", "cluster": "web", "port": 8091, "internal": {"web1": "10.9.0.61"}});
    set(figure, "POST", "/addresses", &body)?;
    eventually(LAUNCHER_LIMIT, "the addresses in the kernels", || {
        let rules = rules(figure, external)?;
        let other = figure.address("web2")?;
        ensure!(rules.contains("10.9.0.61 . 8091") && rules.contains(&format!("{other} . 8091")), "{rules}");
        figure.host("web1").text("ip -4 -o address show dev eth0 | grep -q ' 10.9.0.61/24 '").map(drop)
    })?;
    let (status, answer) = figure.api("DELETE", &format!("/addresses/{external}"), None)?;
    ensure!(status == 204, "{status} {answer}");
    Ok(())
}

/// An administrator's directives may say anything that httpd takes: each text is the value of a header, and arrives as it was sent.
fn directives(figure: &Figure, texts: &[String]) -> Result<()> {
    let parsed = texts.iter().filter_map(|text| serde_json::from_str::<String>(text).ok());
    // What HTTP does not carry in a header (RFC 9110, 5.5), and what httpd itself replaces by its own values.
    let values: Vec<String> = parsed
        .filter(|text| text.len() < 800 && !text.contains(|c: char| c.is_ascii_control()) && !text.contains("${"))
        .map(|text| format!("[{text}]"))
        .collect();
    ensure!(values.len() >= 200, "{} values", values.len());
    // A format of mod_headers within a quoted word of httpd's configuration, both with escapes.
    let format = |text: &str| text.replace('\\', "\\\\").replace('%', "%%");
    let quoted = |text: &str| format(text).replace('\\', "\\\\").replace('"', "\\\"");
    let line = |(number, value): (usize, &String)| {
        format!(r#"Header always set X-Hostile "{}" "expr=%{{REQUEST_URI}} == '/h{number}'""#, quoted(value))
    };
    // A cluster has 16 KiB for them.
    for values in values.chunks(100) {
        let lines: Vec<String> = values.iter().enumerate().map(line).collect();
        let answer = set(figure, "PATCH", "/clusters/web", &json!({ "httpd_directives": lines }))?;
        ensure!(answer["httpd_directives"] == json!(lines), "{answer}");
        headers(figure, values)?;
    }
    println!("{} texts came back in headers of httpd, on each node", values.len());
    set(figure, "PATCH", "/clusters/web", &json!({"httpd_directives": []}))?;
    for broken in ["a\nb", "a\rb", "a\0b"] {
        let (status, answer) = figure.api("PATCH", "/clusters/web", Some(&json!({ "httpd_directives": [broken] })))?;
        ensure!(status == 409, "{broken:?}: {status} {answer}");
    }
    Ok(())
}

/// The headers of the pages `/h0`, `/h1`, … on each node are these values.
fn headers(figure: &Figure, values: &[String]) -> Result<()> {
    for node in NODES {
        let ask = format!(
            "curl -sS -m 60 -D - -o /dev/null -H 'Host: ada.example.org' 'http://{}/h[0-{}]'",
            figure.address(node)?,
            values.len() - 1
        );
        eventually(LAUNCHER_LIMIT, &format!("the directives on {node}"), || {
            let heads = figure.host("lb").text(&ask)?;
            let back: Vec<&str> = heads.lines().filter_map(|line| line.strip_prefix("X-Hostile: ")).collect();
            let back: Vec<&str> = back.into_iter().map(|line| line.trim_end_matches('\r')).collect();
            let other = values.iter().zip(&back).find(|(sent, back)| sent != *back);
            ensure!(other.is_none() && back.len() == values.len(), "{} came back; {other:?}", back.len());
            Ok(())
        })?;
    }
    Ok(())
}
