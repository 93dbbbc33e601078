//! What a daemon's checker refuses never goes live, and the report has the checker's words. Rolling back is one command.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, NODES};

const LIMIT: Duration = Duration::from_secs(15);

/// The value of `X-Scenario` in a node's answers; empty where there is none.
fn header(figure: &Figure, node: &str) -> Result<String> {
    let line = format!(
        "curl -sS -m 5 -D - -o /dev/null -H 'Host: site.example.org' http://{}/ | tr -d '\\r'",
        figure.address(node)?
    );
    let head = figure.host("lb").text(&line)?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{node}: {head}");
    Ok(head.lines().find_map(|line| line.strip_prefix("X-Scenario: ")).unwrap_or_default().to_owned())
}

fn header_becomes(figure: &Figure, node: &str, value: &str) -> Result<()> {
    eventually(LIMIT, &format!("the header {value:?} from {node}"), || {
        let found = header(figure, node)?;
        ensure!(found == value, "{found:?}");
        Ok(())
    })
}

fn directives(figure: &Figure, text: &str) -> Result<()> {
    figure.host("cp").write_file("/run/directives.conf", text.as_bytes())?;
    figure.phalanx("cluster change web --httpd-directives-file /run/directives.conf").map(drop)
}

fn generation(figure: &Figure, node: &str) -> Result<String> {
    figure.host(node).text("readlink /var/lib/phalanx/live")
}

/// Every daemon of the node and its accounts, with its start and the process it runs as.
fn processes(figure: &Figure, node: &str) -> Result<String> {
    figure.host(node).text(
        "for unit in $(systemctl list-units --plain --no-legend 'phalanx-*.service' | cut -d' ' -f1); do \
           echo $unit $(systemctl show -p InvocationID,MainPID,NRestarts --value $unit); done",
    )
}

#[test]
fn bad_config() -> Result<()> {
    Figure::scenario(|figure| {
        figure.site("site", "site.example.org", &[("index.html", "here")])?;
        for node in NODES {
            header_becomes(figure, node, "")?;
        }
        directives(figure, "Header set X-Scenario one\n")?;
        for node in NODES {
            header_becomes(figure, node, "one")?;
        }
        figure.settled(&NODES)?;
        refused(figure)?;
        roll_back(figure)
    })
}

fn refused(figure: &Figure) -> Result<()> {
    let before: Vec<_> = NODES.iter().map(|node| processes(figure, node)).collect::<Result<_>>()?;
    let live: Vec<_> = NODES.iter().map(|node| generation(figure, node)).collect::<Result<_>>()?;
    directives(figure, "Header set X-Scenario two\nFrobnicateHard on\n")?;
    for node in NODES {
        eventually(LIMIT, &format!("{node}'s refusal"), || {
            let report = figure.report(node)?;
            let problems = report["problems"].to_string();
            for part in ["httpd-common.conf", "line ", "Invalid command 'FrobnicateHard'"] {
                ensure!(problems.contains(part), "{part:?} is missing in {problems}");
            }
            ensure!(report["converged"] == false && report["in_service"] == true, "{report}");
            Ok(())
        })?;
        // The file and the line that are named hold the directive.
        let problem = figure.report(node)?["problems"].to_string();
        let line = problem.split_once("on line ").map_or("", |(_, rest)| rest);
        let (line, rest) = line.split_once(" of ").with_context(|| format!("no line in {problem}"))?;
        let file = rest.split(':').next().unwrap_or_default();
        let named = figure.host(node).text(&format!("sed -n {line}p {file}"))?;
        ensure!(named == "FrobnicateHard on", "line {line} of {file} is {named:?}");
    }
    let status = figure.phalanx("status")?;
    ensure!(status.contains("FrobnicateHard"), "{status}");
    let events = figure.phalanx("events")?;
    ensure!(events.matches("was refused").count() == 2, "each node tells it once:\n{events}");
    ensure!(events.contains("Invalid command 'FrobnicateHard'"), "{events}");

    // It is not tried again and again, and nothing of it went live.
    std::thread::sleep(Duration::from_secs(6));
    for (number, node) in NODES.iter().enumerate() {
        ensure!(header(figure, node)? == "one", "{node} serves on as before");
        ensure!(generation(figure, node)? == live[number], "{node}'s live generation is another");
        let now = processes(figure, node)?;
        // An httpd that had yet to finish when the good directives came may have ended since.
        let foreign = now.lines().find(|line| !before[number].contains(line));
        ensure!(foreign.is_none() && now.contains("phalanx-httpd"), "{node} has started {foreign:?}; it runs:\n{now}");
        let tried = figure.host(node).text("journalctl -u phalanx-agent --no-pager | grep -c 'step=\"validate\"'")?;
        ensure!(tried == "3", "{node} validated {tried} times: at first, the good one, the bad one");
    }
    ensure!(figure.phalanx("events")?.matches("was refused").count() == 2, "it is told once");

    directives(figure, "Header set X-Scenario three\n")?;
    for node in NODES {
        header_becomes(figure, node, "three")?;
    }
    figure.settled(&NODES)
}

fn roll_back(figure: &Figure) -> Result<()> {
    let good = figure.report("web2")?["generation"].as_u64().context("a generation")?;
    ensure!(good >= 3, "generation {good} is live");
    let said = figure.phalanx("server rollback web2 2")?;
    ensure!(header(figure, "web2")? == "one", "the answer came when it was done: {said}");
    ensure!(header(figure, "web1")? == "three", "the other node is not touched");
    let gone = figure.phalanx("server rollback web2 77").expect_err("there is no such generation");
    ensure!(format!("{gone:#}").contains("generation 77 is not kept here"), "{gone:#}");

    // It stays, over a restart of the agent too, until the spec changes.
    figure.host("web2").text("systemctl restart phalanx-agent")?;
    figure.settled(&["web2"])?;
    std::thread::sleep(Duration::from_secs(6));
    ensure!(header(figure, "web2")? == "one" && generation(figure, "web2")? == "generations/2", "it stays");
    directives(figure, "Header set X-Scenario four\n")?;
    for node in NODES {
        header_becomes(figure, node, "four")?;
    }
    figure.settled(&NODES)
}
