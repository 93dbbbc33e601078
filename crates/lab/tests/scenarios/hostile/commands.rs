//! Each text as an argument of commands, one for each kind of value, in the panel's host: see `commands.py`.

use super::PATIENCE;
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use serde_json::{Value, json};
use std::time::Duration;

const SCRIPT: &str = include_str!("commands.py");
/// For all texts through some of the commands.
const LIMIT: Duration = Duration::from_secs(500);
/// How many are at it at the same time.
const HANDS: usize = 2;

/// A command with `@` for the text, and how what it made is shown, where in that the text is, and how it is undone.
struct Line {
    words: &'static str,
    show: &'static str,
    at: &'static str,
    undo: &'static [&'static str],
}

const fn line(words: &'static str, show: &'static str, at: &'static str, undo: &'static [&'static str]) -> Line {
    Line { words, show, at, undo }
}

/// One for each kind of value. Words are parted by a blank.
const LINES: [&[Line]; HANDS] = [
    &[
        line("account add --logical-server=www -- @", "account show -- @", "name", &["account remove -- @"]),
        line("site add --account=ada -- @", "site show -- @", "name", &["site remove -- @"]),
        line(
            "site add cli.example.org --account=ada --alias=@",
            "site show cli.example.org",
            "aliases 0",
            &["site remove cli.example.org"],
        ),
        line("site change ada.example.org --add-alias=@", "", "", &["site change ada.example.org --remove-alias=@"]),
        line("server show -- @", "", "", &[]),
        line("server rollback web1 -- @", "", "", &[]),
        line("cluster weight web web1 -- @", "cluster show web", "master_settings weight", &[]),
        line("account change ada --memory-mib=@", "account show ada", "limits memory_mib", &[]),
        line(
            "mail-domain add --account=ada --logical-server=post -- @",
            "mail-domain show -- @",
            "name",
            &["mail-domain remove -- @"],
        ),
        line("mail-domain show -- @", "", "", &[]),
    ],
    &[
        line(
            "site add root.example.org --account=ada --document-root=@",
            "site show root.example.org",
            "document_root",
            &["site remove root.example.org"],
        ),
        line("account add php --logical-server=www --php=@", "account show php", "php", &["account remove php"]),
        line("server add net --kind=web --address=@", "server show net", "address", &["server remove net"]),
        line("server add kind --address=10.9.0.60/24 --kind=@", "server show kind", "kind", &["server remove kind"]),
        line("share add path --kind=local --nas=storage --path=@", "share show path", "path", &["share remove path"]),
        line(
            "address add --balancer=front --cluster=web -- @",
            "address show -- @",
            "external",
            &["address remove -- @"],
        ),
        line(
            "address add 198.51.100.13:80 --balancer=front --cluster=web --internal=web1=@",
            "address show 198.51.100.13:80",
            "internal web1",
            &["address remove 198.51.100.13:80"],
        ),
        line("logical-server add logical --server=@", "", "", &["logical-server remove logical"]),
        line("cluster move-grant mail mailboxes --to=@", "", "", &[]),
    ],
];

/// Runs them; returns how many texts each had, and how many commands ran.
pub fn every_command(figure: &Figure, texts: &[String]) -> Result<(usize, usize)> {
    // What JSON alone can say, and what no program can be given: a NUL, or more than the kernel takes in one argument.
    let texts: Vec<String> = (texts.iter())
        .filter_map(|text| serde_json::from_str::<String>(text).ok())
        .filter(|text| !text.contains('\0') && text.len() < 100_000)
        .collect();
    let cp = figure.host("cp");
    cp.write_file("/run/commands.py", SCRIPT.as_bytes())?;
    let mut running = Vec::new();
    for (hand, lines) in LINES.iter().enumerate() {
        let commands: Vec<Value> = lines.iter().map(Line::order).collect();
        let order = json!({"texts": texts, "commands": commands, "patience_s": PATIENCE.as_secs()});
        cp.write_file(&format!("/run/commands{hand}.json"), order.to_string().as_bytes())?;
        running.push(cp.spawn(&format!("exec python3 /run/commands.py < /run/commands{hand}.json"))?);
    }
    let (mut count, mut wrong) = (0, Vec::new());
    for running in running {
        for told in running.wait(LIMIT)?.text()?.lines() {
            let told: Value = serde_json::from_str(told)?;
            let tried = told["tried"].as_u64().context("how many were tried")? as usize;
            ensure!(tried == texts.len(), "{told}");
            count += tried;
            println!("{} took {}", told["words"], told["taken"]);
            let these = told["wrong"].as_array().into_iter().flatten();
            wrong.extend(these.map(|one| format!("{}: {one}", told["words"])));
        }
    }
    ensure!(wrong.is_empty(), "{} commands went wrong:\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
    ensure!(count == texts.len() * LINES.iter().map(|lines| lines.len()).sum::<usize>(), "{count} commands");
    Ok((texts.len(), count))
}

impl Line {
    fn order(&self) -> Value {
        let words = |line: &str| line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let undo: Vec<_> = self.undo.iter().map(|line| words(line)).collect();
        // A host name has no case (RFC 4343), and is kept in lower case.
        let has_no_case = ["site add", "mail-domain add"].iter().any(|words| self.words.starts_with(words));
        let host = has_no_case && self.at != "document_root";
        json!({"words": words(self.words), "show": words(self.show), "at": words(self.at), "undo": undo, "host": host})
    }
}
