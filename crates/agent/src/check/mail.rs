//! The checkers of mail daemons.

use super::{CHECK_LIMIT, refusal};
use anyhow::Context;
use phalanx_host::atomic::{self, Access};
use phalanx_host::generation::Seen;
use phalanx_host::{command, generation};
use phalanx_plan::mail::{dovecot, filter, postfix};
use std::path::Path;

const MAIN_CF: &str = "main.cf";
const MASTER_CF: &str = "master.cf";
/// Where the copy lies that Postfix' checker reads.
const CHECKED: &str = "/run/phalanx/postfix-check";

/// Has Postfix, Dovecot and Rspamd read their files.
pub(super) async fn check(directory: &Path) -> anyhow::Result<Option<String>> {
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let root = directory.ancestors().nth(2).context("a generation lies below the store's root")?;
    let seen = generation::Store::new(root).observe()?;
    if let Some(words) = check_postfixes(directory).await? {
        return Ok(Some(words));
    }
    let mut checks = Vec::new();
    // Rspamd's checker takes seconds, since it loads all rules.
    if !is_live(&seen, directory, filter::DIRECTORY) {
        let own = format!("--var=LOCAL_CONFDIR={}", at(filter::DIRECTORY));
        checks.push(("rspamadm", vec![own, "configtest".into(), "-c".into(), "/etc/rspamd/rspamd.conf".into()]));
    }
    for file in [dovecot::LOGINS_FILE, dovecot::MAILBOXES_FILE] {
        if directory.join(file).exists() {
            checks.push(("doveconf", vec!["-n".into(), "-c".into(), at(file)]));
        }
    }
    for (program, args) in checks {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if let Some(words) = refusal(command::succeed(program, &args, CHECK_LIMIT).await)? {
            return Ok(Some(format!("{program}: {words}")));
        }
    }
    Ok(None)
}

/// Has Postfix read the configuration of each queue that the node runs.
async fn check_postfixes(directory: &Path) -> anyhow::Result<Option<String>> {
    let adopted = directory.join(postfix::ADOPTED);
    let adopted = match std::fs::read_dir(&adopted) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
        entries => entries
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
            .with_context(|| format!("{} can't be listed", adopted.display()))?,
    };
    for of_queue in std::iter::once(directory.join(postfix::DIRECTORY)).chain(adopted) {
        if of_queue.join(MAIN_CF).exists()
            && let Some(words) = check_postfix(&of_queue).await?
        {
            return Ok(Some(format!("postfix: {words}")));
        }
    }
    Ok(None)
}

/// Its checker looks at the queue, too, and makes what is missing there. The queue itself may be on a share that hangs, or another
/// node's still: the checker gets a copy of the configuration with a queue of this machine's own.
async fn check_postfix(of_queue: &Path) -> anyhow::Result<Option<String>> {
    for place in [postfix::QUEUE, postfix::DATA] {
        std::fs::create_dir_all(place).with_context(|| format!("{place} can't be made"))?;
    }
    let copy = Path::new(CHECKED);
    atomic::remove(copy)?;
    std::fs::create_dir_all(copy).with_context(|| format!("{CHECKED} can't be made"))?;
    let read = |name: &str| {
        let path = of_queue.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))
    };
    let line = |line: &str| match line.split_once(" = ") {
        Some(("queue_directory", _)) => format!("queue_directory = {}\n", postfix::QUEUE),
        _ => format!("{line}\n"),
    };
    let main_cf: String = read(MAIN_CF)?.lines().map(line).collect();
    for (name, text) in [(MAIN_CF, main_cf), (MASTER_CF, read(MASTER_CF)?)] {
        atomic::replace(&copy.join(name), text.as_bytes(), Access::PUBLIC)?;
    }
    // These come first, since Postfix' checker tells its words to a log alone. Postfix takes names that it does not know for a customer's own;
    // here each is a mistake. What else it warns of are the look-ups' files, which it looks for where they will be.
    let said = command::run("postconf", &["-c", CHECKED, "-nf"], CHECK_LIMIT).await?.stderr;
    let is_refusal = |line: &&str| line.contains("unused parameter") || line.contains("fatal:");
    let mut words: Vec<String> = said.lines().filter(is_refusal).map(str::to_owned).collect();
    // A service that can't be read ends Postfix' master; a line of a table that can't be read is left out.
    let services = command::run("postconf", &["-c", CHECKED, "-M"], CHECK_LIMIT).await?.stderr;
    let is_refusal = |line: &&str| line.contains(MASTER_CF) || line.contains("fatal:");
    words.extend(services.lines().filter(is_refusal).map(str::to_owned));
    let tables = of_queue.to_string_lossy();
    for table in postfix::TABLES.iter().map(|table| format!("regexp:{tables}/{table}")).filter(|table| is_there(table))
    {
        let told = command::run("postmap", &["-c", CHECKED, "-q", "x", &table], CHECK_LIMIT).await?.stderr;
        words.extend(told.lines().filter(|line| line.contains(path_of(&table))).map(str::to_owned));
    }
    if !words.is_empty() {
        return Ok(Some(words.join("\n").replace(CHECKED, &tables)));
    }
    refusal(command::succeed("postfix", &["-c", CHECKED, "check"], CHECK_LIMIT).await)
}

/// The file of a table as Postfix names it.
fn path_of(table: &str) -> &str {
    table.trim_start_matches("regexp:")
}

/// Only the node's own Postfix has tables beside it; the others read the same.
fn is_there(table: &str) -> bool {
    Path::new(path_of(table)).exists()
}

/// Whether the part `name` of a staged generation is what is live, and so was checked before.
fn is_live(seen: &Seen, directory: &Path, name: &str) -> bool {
    let number = directory.file_name().and_then(|number| number.to_str()?.parse::<u64>().ok());
    let part = |number: Option<u64>| {
        let files = number.and_then(|number| seen.generations.get(&number)).filter(|seen| seen.intact)?;
        let of_part = files.files.iter().filter(|(file, _)| Path::new(file).starts_with(name));
        Some(of_part.collect::<Vec<_>>())
    };
    part(number).is_some_and(|staged| part(seen.live) == Some(staged))
}
