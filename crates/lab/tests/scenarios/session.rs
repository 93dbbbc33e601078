//! A login made on one node holds on the other, and after the first is killed: PHP's sessions lie on the share.

use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use std::time::Duration;

const LOGIN: &str = "<?php session_start();
if (isset($_GET['user'])) { $_SESSION['user'] = $_GET['user']; }
echo gethostname(), ' ', $_SESSION['user'] ?? 'nobody';";

#[test]
fn session() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("shop", "shop.example.org", &[("login.php", LOGIN)])?;
    let ask = |node: &str, query: &str| -> Result<String> {
        let address = figure.address(node)?;
        let line = format!(
            "curl -sS -m 5 -c /run/jar -b /run/jar -H 'Host: shop.example.org' 'http://{address}/login.php{query}'"
        );
        figure.host("lb").text(&line)
    };
    eventually(Duration::from_secs(5), "the login page", || {
        let page = ask("web1", "")?;
        ensure!(page == "web1 nobody", "{page}");
        Ok(())
    })?;
    ensure!(ask("web1", "?user=ada")? == "web1 ada");
    ensure!(ask("web2", "")? == "web2 ada", "the login holds on the other node");
    figure.host("web1").kill()?;
    ensure!(ask("web2", "")? == "web2 ada", "the login holds after the first node's death");
    Ok(())
}
