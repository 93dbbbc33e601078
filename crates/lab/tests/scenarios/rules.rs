//! Each place in the code that refuses a change by a rule, tried through the API and through the command line: refused by the rule's name, with a
//! way out, and nothing changed.
//!
//! The rules and the places are read from the code. A new one that nothing tries turns this red.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, LOGICAL};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

mod attempts;
mod places;

use attempts::{Attempt, Command, Unsayable};

/// Advice of the API that the command line gives in its own words.
const OWN_HINTS: [(&str, &str); 3] = [
    (
        "bring another node into service first, or say it twice: anyway",
        "bring another node into service first, or repeat it with --anyway",
    ),
    ("remove its sites first, or with it: ?sites=true", "remove its sites first, or repeat it with --with-sites"),
    ("remove these first, or with it: ?mailboxes=true", "remove these first, or repeat it with --with-mailboxes"),
];

/// The number after the last uid that an account can have.
const UIDS_END: &str = "1904194303";

/// What a refusal said.
#[derive(Debug)]
struct Said {
    rule: &'static str,
    detail: String,
    hint: String,
}

/// All that the panel keeps, without what it saw of the servers.
fn world(figure: &Figure) -> Result<Value> {
    let mut all = serde_json::Map::new();
    const LISTS: [&str; 10] = [
        "servers",
        "clusters",
        "shares",
        "addresses",
        "logical-servers",
        "accounts",
        "sites",
        "mail-domains",
        "mailboxes",
        "aliases",
    ];
    for list in LISTS {
        let (status, mut answer) = figure.api("GET", &format!("/{list}"), None)?;
        ensure!(status == 200, "{list}: {status} {answer}");
        for item in answer["items"].as_array_mut().context("a list has items")? {
            item.as_object_mut().context("an item is an object")?.remove("state");
        }
        all.insert(list.to_owned(), answer);
    }
    Ok(Value::Object(all))
}

fn refused_by_the_api(figure: &Figure, attempt: &Attempt) -> Result<Said> {
    let (method, path, body) = &attempt.request;
    let (status, problem) = figure.api(method, path, body.as_ref())?;
    let seen = format!("{method} {path} {body:?} gave {status} {problem}");
    ensure!(status == 409 && problem["rule"] == attempt.rule, "the rule is {}, but {seen}", attempt.rule);
    let kind = problem["type"].as_str().unwrap_or_default();
    ensure!(kind.ends_with(&format!("/problems/{}", attempt.rule)) && problem["status"] == 409, "{seen}");
    for words in ["title", "detail", "hint"] {
        ensure!(problem[words].as_str().is_some_and(|text| text.len() > 5), "no {words}: {seen}");
    }
    let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    Ok(Said { rule: attempt.rule, detail: text("detail"), hint: text("hint") })
}

fn refused_by_the_command(figure: &Figure, attempt: &Attempt, said: &Said) -> Result<()> {
    let command = match &attempt.command {
        Command::Refused(command) => command,
        Command::Misused(command, words) => return misused(figure, command, 2, words),
    };
    let output = figure.host("cp").run(&format!("phalanx {command}"))?;
    let own = OWN_HINTS.iter().find(|(theirs, _)| *theirs == said.hint);
    let hint = own.map_or(said.hint.as_str(), |(_, ours)| ours);
    let has = |line: String| output.stderr.lines().any(|seen| seen == line);
    ensure!(
        output.status == 1
            && output.stdout.is_empty()
            && has(format!("rule: {}", attempt.rule))
            && has(format!("error: {}", said.detail))
            && has(format!("hint: {hint}")),
        "`phalanx {command}` was to be refused by {} as the API says it, {said:?}: {output:?}",
        attempt.rule
    );
    Ok(())
}

/// The command ends with `status`, and says why in these words.
fn misused(figure: &Figure, command: &str, status: i32, words: &str) -> Result<()> {
    let output = figure.host("cp").run(&format!("phalanx {command}"))?;
    let says = output.stderr.starts_with("error: ") && output.stderr.contains(words);
    ensure!(
        output.status == status && output.stdout.is_empty() && says,
        "`phalanx {command}` was to say {words:?} and end with {status}: {output:?}"
    );
    Ok(())
}

fn nobody_can_ask(figure: &Figure, unsayable: &Unsayable) -> Result<()> {
    let (method, path, body, expected, words) = &unsayable.request;
    let (status, problem) = figure.api(method, path, Some(body))?;
    let detail = problem["detail"].as_str().unwrap_or_default();
    ensure!(status == *expected && detail.contains(words), "{method} {path} {body}: {status} {problem}");
    let (command, status, words) = unsayable.command;
    misused(figure, command, status, words)
}

/// Tries one thing both ways.
fn tried(figure: &Figure, attempt: &Attempt) -> Result<Said> {
    let said = refused_by_the_api(figure, attempt)?;
    refused_by_the_command(figure, attempt, &said)?;
    Ok(said)
}

/// Tries to add an account when there is no uid left.
fn beyond_the_last_uid(figure: &Figure) -> Result<Said> {
    const NEXT: &str = "sqlite3 /var/lib/phalanx/panel/panel.sqlite";
    let cp = figure.host("cp");
    let next = cp.text(&format!("{NEXT} 'SELECT uid_next FROM meta'"))?;
    let set = |to: &str| cp.text(&format!("{NEXT} 'PRAGMA busy_timeout = 5000; UPDATE meta SET uid_next = {to}'"));
    set(UIDS_END)?;
    let said = tried(figure, &attempts::beyond_the_last_uid());
    set(&next)?;
    said
}

#[test]
fn rules() -> Result<()> {
    Figure::scenario(|figure| {
        figure.host("cp").write_file("/run/password", b"correct horse\n")?;
        for line in [
            "server add post --kind mail --address 10.9.0.40/24",
            "server add pillar --kind mail --address 10.9.0.42/24",
            "server add disk --kind nas --address 10.9.0.41/24",
            "server add spare --kind web --address 10.9.0.43/24",
            "server add courier --kind mail --address 10.9.0.44/24",
            "server add runner --kind mail --address 10.9.0.45/24",
            "share add letters --kind local --nas storage --path /srv/nas/letters",
            "cluster add mail --kind mail --master pillar --mail-name pillar.example.net",
            "cluster add couriers --kind mail --master courier --share letters --mail-name mail.example.net",
            "server add sick --kind mail --address 10.9.0.46/24",
            "cluster add-slave couriers runner",
            "cluster add-slave couriers sick",
            "server fence sick --confirm 'sick is switched off'",
            "cluster move-grant couriers mailboxes --to runner",
            "logical-server add mailroom --server courier",
            "account add bea --logical-server mailroom",
            "mail-domain add bea.example.org --account bea --logical-server mailroom",
            "mailbox add info@bea.example.org --password-file /run/password",
            "alias add sales@bea.example.org --to info@bea.example.org",
            &format!("account add ada --logical-server {LOGICAL}"),
            "site add ada.example.org --account ada --alias alias.example.org",
        ] {
            figure.phalanx(line)?;
        }
        // Not before the panel knows that web2 serves.
        eventually(Duration::from_secs(10), "the drain of web1", || figure.phalanx("cluster drain web web1"))?;
        figure.host("cp").write_file("/run/long.conf", format!("# {}\n", "x".repeat(1_000)).as_bytes())?;
        let many = format!("# {}\n", "x".repeat(900)).repeat(20);
        figure.host("cp").write_file("/run/many.conf", many.as_bytes())?;
        let before = world(figure)?;

        let attempts = attempts::attempts();
        let (mut said, mut wrong) = (Vec::new(), Vec::new());
        for tried in attempts.iter().map(|attempt| tried(figure, attempt)).chain([beyond_the_last_uid(figure)]) {
            match tried {
                Ok(words) => said.push(words),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        let unsayable = attempts::unsayable();
        wrong.extend(unsayable.iter().filter_map(|one| Some(format!("{:#}", nobody_can_ask(figure, one).err()?))));
        ensure!(wrong.is_empty(), "{} tries went wrong:\n{}", wrong.len(), wrong.join("\n"));
        println!("{} attempts were refused, {} can't be asked for", said.len(), unsayable.len());

        everything_was_tried(&said, &unsayable)?;
        let after = world(figure)?;
        ensure!(before == after, "a refused change left something:\n{before:#}\n{after:#}");
        // The tries can fail: a person who says it twice is heard.
        figure.phalanx("cluster drain web web2 --anyway")?;
        ensure!(world(figure)? != before);
        Ok(())
    })
}

/// Each rule, and each place in the code that refuses by one, was heard.
fn everything_was_tried(said: &[Said], unsayable: &[Unsayable]) -> Result<()> {
    // A rule of which nobody can ask for the breach is tried by asking all the same.
    let tried: BTreeSet<&str> = said.iter().map(|said| said.rule).chain(unsayable.iter().map(|one| one.rule)).collect();
    let rules = places::rules()?;
    let rules: BTreeSet<&str> = rules.iter().map(String::as_str).collect();
    ensure!(tried == rules, "tried {tried:?} of the rules {rules:?}");
    let places = places::places()?;
    let mut silent = Vec::new();
    for place in &places {
        let was_heard = said.iter().any(|said| place.said(said.rule, &said.detail, &said.hint));
        let is_behind = unsayable.iter().any(|one| one.rule == place.rule && place.begins(one.words));
        ensure!(!(was_heard && is_behind), "somebody could ask for it after all: {}", place.described());
        if !was_heard && !is_behind {
            silent.push(place.described());
        }
    }
    ensure!(silent.is_empty(), "nothing tries these of {}:\n{}", places.len(), silent.join("\n"));
    println!("{} places in the code were tried, of {} rules", places.len(), rules.len());
    Ok(())
}
