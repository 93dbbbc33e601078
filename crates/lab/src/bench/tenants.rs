//! Accounts and sites by the hundred, and the pages in them. What they are called is in [`client`](super::client).

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::client::{self, Fill, Filled, Seen};
use crate::figure::Figure;
use crate::load::{self, Record};
use crate::{Host, eventually};

/// A page of a common small size: 512 bytes.
pub const STATIC: (&str, &str) = ("index.html", {
    const PAGE: [u8; 512] = [b'x'; 512];
    match std::str::from_utf8(&PAGE) {
        Ok(page) => page,
        Err(_) => panic!("it is ASCII"),
    }
});
/// A page that PHP makes.
pub const PHP: (&str, &str) = ("page.php", "<?php echo 'the node is ', gethostname();");

/// Requests to the API at a time: more wait for its one writer.
const API_THREADS: u32 = 4;

/// Lets a host do a piece of [`client::Work`], told as its command line, and returns what it wrote.
pub fn work<T: DeserializeOwned>(host: &Host<'_>, limit: Duration, line: &str) -> Result<Vec<T>> {
    let program = load::install(host)?;
    let text = host.run_for(limit, &format!("exec {program} bench-client {line}"))?.text()?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a result: {line:?}"))).collect()
}

/// Adds sites through the API, for at most `seconds`.
pub fn fill(figure: &Figure, sites: Range<u32>, per_account: u32, seconds: u32) -> Result<Filled> {
    let Fill { from, to, per_account, threads, seconds } =
        Fill { from: sites.start, to: sites.end, per_account, threads: API_THREADS, seconds };
    let line =
        format!("fill --from {from} --to {to} --per-account {per_account} --threads {threads} --seconds {seconds}");
    let limit = Duration::from_secs(u64::from(seconds) + 60);
    work(&figure.host("cp"), limit, &line)?.pop().context("nothing was said of the filling")
}

/// Adds sites, each to an account of its own, and fails where not all were added.
pub fn accounts(figure: &Figure, sites: Range<u32>) -> Result<()> {
    let filled = fill(figure, sites.clone(), 1, 60)?;
    ensure!(filled.sites == sites.end - sites.start, "not all accounts could be added in time: {filled:?}");
    Ok(())
}

/// Writes the same file into the document roots of sites that have an account each, once they exist.
pub fn publish(figure: &Figure, sites: Range<u32>, (name, content): (&str, &str)) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(120);
    let nas = figure.host("nas");
    let Range { start, end } = sites;
    let root = |number: u32| format!("/srv/nas/web/home/{}/sites/{}", client::account(number), client::site(number));
    eventually(LIMIT, "the document root of the last site", || nas.text(&format!("test -d {}", root(end - 1))))?;
    nas.write_file("/run/bench-page", content.as_bytes())?;
    let line = format!(
        r#"set -e; for n in $(seq {start} {last}); do
             d=/srv/nas/web/home/a$n/sites/s$n.example.org; until [ -d "$d" ]; do sleep 0.1; done
             cp /run/bench-page "$d/{name}"; chmod 640 "$d/{name}"; chown --reference="$d" "$d/{name}"
           done"#,
        last = end - 1
    );
    nas.run_for(LIMIT, &line)?.text().map(drop)
}

/// Asks each of the sites once at `target` from a host, `threads` at a time.
pub fn sweep(from: &Host<'_>, target: &str, sites: Range<u32>, path: &str, threads: u32) -> Result<Vec<Record>> {
    let Range { start, end } = sites;
    let line = format!("sweep --target {target} --from {start} --to {end} --path /{path} --threads {threads}");
    work(from, Duration::from_secs(180), &line)
}

/// Adds a site to each of the accounts, one after the other, and says when all `nodes` served it.
pub fn live(figure: &Figure, nodes: &[String], accounts: &[String]) -> Result<Vec<Seen>> {
    let nodes = nodes.iter().map(|node| format!("--node {node}:80"));
    let accounts = accounts.iter().map(|account| format!("--account {account}"));
    let words: Vec<String> = nodes.chain(accounts).collect();
    work(&figure.host("cp"), Duration::from_secs(300), &format!("live {}", words.join(" ")))
}

/// Waits until a node answers 200 for a page.
pub fn answers(figure: &Figure, node: &str, site: &str, path: &str) -> Result<()> {
    eventually(Duration::from_secs(30), &format!("an answer of {node} for {site}/{path}"), || {
        let answer = figure.get_from(node, site, &format!("/{path}"))?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}
