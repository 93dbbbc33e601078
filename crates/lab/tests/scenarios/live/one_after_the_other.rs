//! Changes of one account that follow each other at once, while somebody is at a long download from it.

use super::{LIMIT, NODES};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, SERVICE};
use phalanx_lab::load::{Load, Record};
use std::time::Duration;

const SITE: &str = "busy.example.org";
/// So many that each of the units that an account's httpd can run as is used several times.
const CHANGES: usize = 12;
/// A download's size, in KiB, and how much of it a client takes in a second: it lasts longer than a change may take, and less than the
/// eight seconds that an httpd may take for its last answers.
const BIG_KIB: u64 = 5_000;
const PACE_KIB: u64 = 1_000;
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// Gives a site another host name each time and waits until both nodes have answered for it three times in a row: two httpds may listen
/// for a moment, and the kernel chooses. Writes how many milliseconds after the API's answer that was.
const CHANGE: &str = r#"for number in $(seq $1); do
    phalanx site change $2 --add-alias a$number.$2 > /dev/null || exit 1
    begin=$(date +%s%3N)
    for node in $3 $4; do
        row=0
        while [ $row -lt 3 ]; do
            code=$(curl -s -o /dev/null -m 5 -w '%{http_code}' -H "Host: a$number.$2" "http://$node/")
            if [ "$code" = 200 ]; then row=$((row + 1)); else row=0; sleep 0.02; fi
        done
    done
    echo $(($(date +%s%3N) - begin))
done"#;

/// Each change is live on both nodes within the limit, no request fails, and the downloads come whole. Then the account is removed while a
/// change of it is under way and somebody is at a download: that waits for neither.
pub fn one_after_the_other(figure: &Figure) -> Result<()> {
    figure.site("busy", SITE, &[("index.html", "busy")])?;
    NODES.iter().try_for_each(|node| figure.node_answers(node, SITE, "/", "busy"))?;
    let uid = figure.json("account show busy")?["uid"].as_u64().context("the account has a uid")?;
    let big = format!("/srv/nas/web/home/busy/sites/{SITE}/big");
    figure.host("nas").text(&format!("head -c {BIG_KIB}K /dev/zero > {big} && chown {uid}:{uid} {big}"))?;
    let [web1, web2] = [figure.address(NODES[0])?, figure.address(NODES[1])?];
    let download = |node: &str| {
        let line = format!(
            "curl -sS -o /dev/null --limit-rate {PACE_KIB}k -w '%{{http_code}} %{{size_download}}' -H 'Host: {SITE}' http://{node}/big"
        );
        figure.host("lb").spawn(&line)
    };

    let client = figure.host("client");
    let loads = [false, true].map(|keep| Load { keep, rate: 40, ..Load::new(SERVICE, SITE, "/", 120) });
    let loads = loads.map(|load| load.start(&client));
    let downloads = [download(&web1)?, download(&web2)?];
    let change = format!("change() {{ {CHANGE}\n}}; change {CHANGES} {SITE} {web1} {web2}");
    let took = figure.host("cp").run_for(Duration::from_secs(60), &change)?.text()?;
    let took: Vec<u128> = took.lines().map(str::parse).collect::<Result<_, _>>()?;
    println!("changes one after the other, on both nodes after so many ms: {took:?}");
    for download in downloads {
        let said = download.wait(DOWNLOAD_LIMIT)?.text()?;
        ensure!(said == format!("200 {}", BIG_KIB * 1024), "a download during the changes: {said}");
    }
    for load in loads {
        let records = load?.stop(&client)?;
        let failed: Vec<&Record> = records.iter().filter(|record| !record.ok()).collect();
        ensure!(failed.is_empty(), "{} of {} requests failed: {failed:#?}", failed.len(), records.len());
    }
    ensure!(took.len() == CHANGES && took.iter().all(|took| *took <= LIMIT.as_millis()), "live after, in ms: {took:?}");

    let _cut_off = [download(&web1)?, download(&web2)?];
    let lines =
        format!("phalanx site change {SITE} --add-alias last.{SITE} && phalanx account remove busy --with-sites");
    figure.host("cp").text(&lines)?;
    eventually(LIMIT, "the end of all that the account had", || {
        NODES.iter().try_for_each(|node| super::nothing_is_left(figure, node, uid))
    })
}
