//! A login made on one node holds on the other, and after the first is killed: PHP's sessions lie on the share.

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure, NODES};

const SHOP: &str = "shop.example.org";

const LOGIN: &str = "<?php session_start();
if (isset($_GET['user'])) { $_SESSION['user'] = $_GET['user']; }
echo gethostname(), ' ', $_SESSION['user'] ?? 'nobody';";

#[test]
fn session() -> Result<()> {
    Figure::scenario(|figure| {
        figure.site("shop", SHOP, &[("login.php", LOGIN)])?;
        for node in NODES {
            figure.node_answers(node, SHOP, "/login.php", &format!("{node} nobody"))?;
        }
        // curl keeps the cookie for the site, whatever address it asks.
        let ask = |host: &str, address: &str, query: &str| -> Result<String> {
            let line =
                format!("curl -sS -m 5 -c /run/jar -b /run/jar -H 'Host: {SHOP}' 'http://{address}/login.php{query}'");
            figure.host(host).text(&line)
        };
        let [web1, web2] = [figure.address("web1")?, figure.address("web2")?];
        ensure!(ask("lb", &web1, "?user=ada")? == "web1 ada");
        ensure!(ask("lb", &web2, "")? == "web2 ada", "the login holds on the other node");
        figure.host("web1").kill()?;
        ensure!(ask("lb", &web2, "")? == "web2 ada", "the login holds after the first node's death");
        // And for a browser, which knows the external address alone. It takes the balancer a moment to see the death.
        let jar = figure.host("lb").text("cat /run/jar")?;
        figure.host("client").write_file("/run/jar", format!("{jar}\n").as_bytes())?;
        eventually(Duration::from_secs(10), "the login through the balancer", || {
            let page = ask("client", EXTERNAL, "")?;
            ensure!(page == "web2 ada", "{page}");
            Ok(())
        })
    })
}
