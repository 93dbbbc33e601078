//! The checkers of mail daemons.

use super::{CHECK_LIMIT, refusal};
use anyhow::Context;
use phalanx_host::generation::Seen;
use phalanx_host::{command, generation};
use phalanx_plan::mail::{dovecot, filter, postfix};
use std::path::Path;

/// Has Postfix, Dovecot and Rspamd read their files.
pub(super) async fn check(directory: &Path) -> anyhow::Result<Option<String>> {
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let root = directory.ancestors().nth(2).context("a generation lies below the store's root")?;
    let seen = generation::Store::new(root).observe()?;
    let postfix = at(postfix::DIRECTORY);
    // Its checker looks at the queue, too.
    for place in [postfix::QUEUE, postfix::DATA] {
        std::fs::create_dir_all(place).with_context(|| format!("{place} can't be made"))?;
    }
    // These come first, since Postfix' checker tells its words to a log alone. Postfix takes names that it does not know for a customer's own;
    // here each is a mistake. What else it warns of are the look-ups' files, which it looks for where they will be.
    let said = command::run("postconf", &["-c", &postfix, "-nf"], CHECK_LIMIT).await?.stderr;
    let is_refusal = |line: &&str| line.contains("unused parameter") || line.contains("fatal:");
    let mut words: Vec<String> = said.lines().filter(is_refusal).map(str::to_owned).collect();
    // A service that can't be read ends Postfix' master; a line of a table that can't be read is left out.
    let services = command::run("postconf", &["-c", &postfix, "-M"], CHECK_LIMIT).await?.stderr;
    words.extend(
        services.lines().filter(|line| line.contains("master.cf") || line.contains("fatal:")).map(str::to_owned),
    );
    for table in postfix::TABLES {
        let table = format!("regexp:{postfix}/{table}");
        let told = command::run("postmap", &["-c", &postfix, "-q", "x", &table], CHECK_LIMIT).await?.stderr;
        words.extend(told.lines().filter(|line| line.contains(&table["regexp:".len()..])).map(str::to_owned));
    }
    if !words.is_empty() {
        return Ok(Some(words.join("\n")));
    }
    let mut checks = vec![("postfix", vec!["-c".to_owned(), postfix.clone(), "check".into()])];
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
