//! Addresses and ports: the agents' are out of an account's reach, and who takes another account's is ended.

use super::{AGENT, NODE, PORT, SCORE, Scene, party};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use std::time::Duration;

/// Connects or binds, and says whether it could.
const PORT_SCRIPT: &str = r#"<?php
ini_set('display_errors', '0');
$at = "tcp://{$_GET['at']}";
echo ($_GET['do'] === 'bind' ? stream_socket_server($at) : stream_socket_client($at, $number, $why, 2)) ? 'done' : 'not done';"#;

/// Agents' ports: accounts neither reach them nor, while the agent is not there, hold them.
pub fn agents_are_out_of_reach(scene: &Scene) -> Result<()> {
    let (node, eve) = (scene.node(), &scene.eve);
    scene.figure.put(eve.name, &format!("sites/{}/port.php", eve.site), PORT_SCRIPT)?;
    let eve_does = |what: &str, at: &str| -> Result<bool> {
        let answer = scene.figure.get_from(NODE, &eve.site, &format!("/port.php?do={what}&at={at}"))?;
        ensure!(["done", "not done"].contains(&answer.body.as_str()), "{answer:?}");
        Ok(answer.body == "done")
    };
    let (own, other) = (scene.figure.address(NODE)?, scene.figure.address("web2")?);
    ensure!(eve_does("connect", &format!("{own}:80"))? && eve_does("bind", &format!("{}:9000", eve.ip))?);
    for at in [format!("{own}:{AGENT}"), format!("{own}:{SCORE}"), format!("{other}:{SCORE}")] {
        let line = format!("socat -u OPEN:/dev/null TCP4:{at},connect-timeout=2");
        node.text(&line).with_context(|| format!("root can't reach {at} either"))?;
        ensure!(!eve_does("connect", &at)?, "Eve reached {at}");
    }
    node.text("systemctl stop phalanx-agent")?;
    for (ip, port) in [(own.as_str(), AGENT), (&own, SCORE), ("0.0.0.0", AGENT)] {
        ensure!(!eve_does("bind", &format!("{ip}:{port}"))?, "Eve holds {ip}:{port}");
        let free = format!("python3 -c 'import socket; socket.create_server((\"{ip}\", {port}))'");
        node.text(&free).with_context(|| format!("{ip}:{port} was not free"))?;
    }
    node.text("systemctl start phalanx-agent")?;
    scene.figure.settled(&["web1", "web2"])
}

/// While an account sleeps, somebody with Eve's uid listens on its address. She needs a privilege for it that no account has; if she had
/// it, she would be ended, it would be reported, and the account would answer.
pub fn squatters_are_ended(scene: &Scene) -> Result<()> {
    let eve = scene.eve.uid;
    scene.figure.site("carol", "carol.example.org", &[("index.html", "page of carol")])?;
    let sleeper = party(scene.figure, "carol")?;
    let code = format!(
        "import socket, time\ns = socket.socket()\ns.bind((\"{}\", {PORT}))\ns.listen()\nprint(\"held\", flush=True)\ntime.sleep(60)",
        sleeper.ip
    );
    let caps = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service";
    let line = format!("exec setpriv --reuid {eve} --regid {eve} --clear-groups {caps} python3 -c '{code}'");
    let since = scene.node().text("date +%s")?;
    let mut squatter = scene.node().spawn(&line)?;
    eventually(Duration::from_secs(5), "a squatter", || {
        ensure!(squatter.stdout().contains("held"), "{} {}", squatter.stdout(), squatter.stderr());
        Ok(())
    })?;
    eventually(Duration::from_secs(20), "the sleeper's own answer", || {
        let answer = scene.figure.get_from(NODE, &sleeper.site, "/")?;
        ensure!(answer.status == 200 && answer.body == "page of carol", "{answer:?}");
        Ok(())
    })?;
    ensure!(!squatter.is_running()?, "the squatter lives");
    let journal = scene.node().text(&format!("journalctl -q -u phalanx-launcher --since @{since} --output=cat"))?;
    let report = format!("account {eve} held the address of account {}", sleeper.uid);
    ensure!(journal.contains(&report), "not reported: {journal}");
    Ok(())
}
