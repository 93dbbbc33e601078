//! Links that change while the product looks at them.

use super::{NODE, SECRET, Scene};
use anyhow::{Result, ensure};
use std::time::Duration;

/// Eve swaps a directory for a symlink to Bob's, again and again, while the NAS's agent makes document roots below it.
pub fn agent_follows_no_link(scene: &Scene) -> Result<()> {
    let before =
        scene.figure.host("nas").text("find /srv/nas/web/home/bob -printf '%p %u %m %y\\n' | grep -v /logs/ | sort")?;
    let swap = "while sleep 0.001; do rm -rf race; ln -sfn ../../../bob/sites race; rm -f race; mkdir -p race; done";
    let id = scene.eve.uid.to_string();
    let root = format!("/srv/nas/web/home/eve/sites/{}", scene.eve.site);
    let line = format!("cd {root} && exec timeout 20 setpriv --reuid {id} --regid {id} --clear-groups sh -c '{swap}'");
    let mut racing = scene.figure.host("nas").spawn(&line)?;
    for number in 0..20 {
        let body = serde_json::json!({"name": format!("race{number}.example.org"), "account": "eve",
            "document_root": format!("sites/{}/race/deep{number}", scene.eve.site)});
        let (status, answer) = scene.figure.api("POST", "/sites", Some(&body))?;
        ensure!(status == 201, "{status} {answer}");
    }
    std::thread::sleep(Duration::from_secs(2));
    ensure!(racing.is_running()?, "the race ended early: {}", racing.stderr());
    drop(racing);
    let after =
        scene.figure.host("nas").text("find /srv/nas/web/home/bob -printf '%p %u %m %y\\n' | grep -v /logs/ | sort")?;
    ensure!(before == after, "root followed a customer's symlink:\n{before}\n{after}");
    scene.bob_answers()
}

/// Eve swaps the target of a link between a page of hers and Bob's secret while the link is asked for as a static page.
pub fn static_pages_show_no_swapped_target(scene: &Scene) -> Result<()> {
    const OWN: &str = "a page of eve";
    let eve = &scene.eve;
    scene.figure.put(eve.name, &format!("sites/{}/own.txt", eve.site), OWN)?;
    let swap = "while sleep 0.001; do for to in ../../../bob/private.txt /srv/phalanx/content/home/bob/private.txt own.txt; do \
                ln -sfn $to swapped; done; done";
    let line = format!(
        "cd /srv/nas/web/home/eve/sites/{} && exec timeout 60 setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{swap}'",
        eve.site,
        uid = eve.uid
    );
    let mut racing = scene.figure.host("nas").spawn(&line)?;
    let address = scene.figure.address(NODE)?;
    let ask =
        format!("for n in $(seq 500); do curl -s -m 5 -H 'Host: {}' http://{address}/swapped; echo; done", eve.site);
    let answers = scene.figure.host("lb").text(&ask)?;
    ensure!(racing.is_running()?, "the race ended early: {}", racing.stderr());
    drop(racing);
    ensure!(answers.contains(OWN), "the link never led to Eve's own page: {answers}");
    ensure!(answers.contains("Forbidden"), "the link never led to Bob's secret: {answers}");
    ensure!(!answers.contains(SECRET), "a static page showed Bob's secret");
    scene.bob_answers()
}
