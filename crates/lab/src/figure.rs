//! Figure 1 with the product on it, set up as an administrator would: by the `phalanx` command, on the panel's host and on each server.
//!
//! It chooses nothing that a person could not: every step is a command that the documentation names.

pub mod mail;
pub mod power;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::load::Load;
use crate::{Host, Lab, Options, Output, eventually};

/// The external address of Figure 1's web cluster.
pub const EXTERNAL: &str = "198.51.100.10";

/// Where that cluster serves the Web.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)), 80);

/// The nodes of the web cluster, its master first.
pub const NODES: [&str; 2] = ["web1", "web2"];

/// Where the web nodes mount the cluster's share.
pub const SHARE: &str = "/srv/phalanx/content";

/// The site that [`Figure::who`] makes.
pub const WHO: &str = "who.example.org";

/// Its page that says the name of the node that answers.
pub const WHO_PAGE: &str = "/who.php";

/// How long the whole cluster may take from the last join until it serves.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// How long a new site may take until a node serves it: promised is one second, on a machine that does nothing else.
const SERVE_LIMIT: Duration = Duration::from_secs(10);

/// A running Figure 1: `client → lb → web1 (master), web2 (slave) → nas`, the panel on `cp`; `web3` is a spare machine that knows nothing yet.
#[derive(Debug)]
pub struct Figure {
    /// The lab that it runs in.
    pub lab: Lab,
}

/// The cluster's logical server.
pub const LOGICAL: &str = "www";

impl Figure {
    /// Brings Figure 1 up, lets `test` do what it wants with it, and ends it. If it does not come up, or `test` fails, the journals of
    /// all hosts are kept, and the failure says where.
    ///
    /// # Errors
    /// What failed, and the folder with the journals.
    pub fn scenario(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play("figure-1", |figure| figure.set_up().and_then(|()| test(figure)))
    }

    /// As [`Figure::scenario`], but the machines know nothing yet: `test` looks at them first, then calls [`Figure::set_up`].
    ///
    /// # Errors
    /// What failed, and the folder with the journals.
    pub fn scenario_from_nothing(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play("figure-1", test)
    }

    /// As [`Figure::scenario`], on real NFS: see [`Figure::up_nfs`].
    ///
    /// # Errors
    /// What failed, and the folder with the journals.
    pub fn scenario_nfs(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play("figure-1-nfs", |figure| figure.set_up().and_then(|()| test(figure)))
    }

    fn play(topology: &str, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let figure = Self { lab: Lab::up(&Options::new(topology))? };
        let result = test(&figure).map_err(|error| figure.lab.failed(error));
        result.and(figure.lab.down())
    }

    /// Brings the lab up and sets the cluster up in it.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn up() -> Result<Self> {
        Self::in_lab(Lab::up(&Options::new("figure-1"))?)
    }

    /// As [`Figure::up`], on real NFS: NAS and web nodes have a kernel of their own, and there is no spare machine.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn up_nfs() -> Result<Self> {
        Self::in_lab(Lab::up(&Options::new("figure-1-nfs"))?)
    }

    /// Sets the cluster up in a lab that runs. The share is of kind `nfs-managed` where the NAS has a kernel that can serve it.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn in_lab(lab: Lab) -> Result<Self> {
        let figure = Self { lab };
        figure.set_up()?;
        Ok(figure)
    }

    /// Starts the panel, declares the whole cluster, lets its machines join and waits until all are as they should be.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn set_up(&self) -> Result<()> {
        self.start_panel()?;
        self.declare_common()?;
        self.declare_web()?;
        for (host, upstream) in [("nas", "cp"), ("lb", "cp"), ("web1", "cp"), ("web2", "web1")] {
            self.join(host, upstream)?;
        }
        self.settled(&["web1", "web2", "nas", "lb"])
    }

    /// A host of the lab.
    ///
    /// # Panics
    /// Figure 1 has no such host: a mistake in the caller.
    pub fn host(&self, name: &str) -> Host<'_> {
        self.lab.host(name).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs `phalanx LINE` on the panel's host and returns what it wrote.
    ///
    /// # Errors
    /// The command's own words, where it did not end with 0.
    pub fn phalanx(&self, line: &str) -> Result<String> {
        self.host("cp").text(&format!("phalanx {line}"))
    }

    /// As [`Figure::phalanx`] with `--json`, parsed.
    ///
    /// # Errors
    /// The command's own words, where it did not end with 0.
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.phalanx(&format!("{line} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("`phalanx {line} --json` wrote {text:?}"))
    }

    /// Asks the panel's API with the administrator's token; returns the status and the body.
    ///
    /// # Errors
    /// The panel could not be asked.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        const ASK: &str = r#"curl -sS -m 20 -X "$1" -w '\n%{http_code}' -H "Authorization: Bearer $(cat /var/lib/phalanx/panel/admin.token)" \
            -H 'Content-Type: application/json' --data-binary @- "http://127.0.0.1:8080/api/v1$2""#;
        let body = body.map(Value::to_string).unwrap_or_default();
        let output = self.host("cp").exec(&["sh", "-c", ASK, "ask", method, path], body.as_bytes())?;
        let text = output.text().with_context(|| format!("{method} {path}"))?;
        let (answer, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        let status = status.trim().parse().with_context(|| format!("{method} {path} gave {text:?}"))?;
        let answer =
            if answer.is_empty() { Value::Null } else { serde_json::from_str(answer).unwrap_or(answer.into()) };
        Ok((status, answer))
    }

    /// An account with one site, whose document root holds the given files. Nodes may take a moment to serve it: see
    /// [`Figure::node_answers`].
    ///
    /// # Errors
    /// A command failed, or the account's home did not appear.
    pub fn site(&self, account: &str, host_name: &str, files: &[(&str, &str)]) -> Result<()> {
        self.phalanx(&format!("account add {account} --logical-server {LOGICAL}"))?;
        self.phalanx(&format!("site add {host_name} --account {account}"))?;
        for (name, content) in files {
            self.put(account, &format!("sites/{host_name}/{name}"), content)?;
        }
        Ok(())
    }

    /// The account `who` with the site [`WHO`], whose [`WHO_PAGE`] says the name of the node that answers, and `more` files. Returns
    /// once each of [`NODES`] has answered with its own name.
    ///
    /// # Errors
    /// A command failed, or a node did not serve the page.
    pub fn who(&self, more: &[(&str, &str)]) -> Result<()> {
        let page = (WHO_PAGE.trim_start_matches('/'), "<?php echo gethostname();");
        self.site("who", WHO, &[&[page], more].concat())?;
        NODES.iter().try_for_each(|node| self.node_answers(node, WHO, WHO_PAGE, node))
    }

    /// Waits until a node, asked at its own address, gives a page with exactly this body.
    ///
    /// # Errors
    /// It did not; the last answer is in the error.
    pub fn node_answers(&self, node: &str, host_name: &str, path: &str, body: &str) -> Result<()> {
        eventually(SERVE_LIMIT, &format!("{body:?} of {node} for http://{host_name}{path}"), || {
            let answer = self.get_from(node, host_name, path)?;
            ensure!((answer.status, &*answer.body) == (200, body), "{answer:?}");
            Ok(())
        })
    }

    /// Waits until the external address answers with [`WHO_PAGE`] of `node`: new connections go there.
    ///
    /// # Errors
    /// None went there within `limit`.
    pub fn serves_through(&self, node: &str, limit: Duration) -> Result<()> {
        eventually(limit, &format!("an answer of {node} at the external address"), || {
            let answer = self.get(WHO, WHO_PAGE)?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })
    }

    /// A load of 100 new connections a second on the external address.
    pub fn load(&self, host_name: &str, path: &str, seconds: u32) -> Load {
        Load::new(SERVICE, host_name, path, seconds)
    }

    /// Looks beneath the share of a web node, in a mount namespace of its own: there is the agent's seal, empty and not to be written
    /// by root himself, and beneath the seal an empty directory. It waits for no share that hangs.
    ///
    /// # Errors
    /// Something was written there, could be, or the seal is gone.
    pub fn nothing_is_beneath(&self, node: &str) -> Result<()> {
        const LOOK: &str = r#"exec timeout 20 unshare --mount sh -ec '
            layers=0; while top=$(findmnt -n -o SOURCE --mountpoint "$1" | tail -n 1); test -n "$top" && test "$top" != phalanx-seal; do
                umount --no-canonicalize -l "$1"; layers=$((layers + 1)); test $layers -lt 9
            done
            echo "$top"; ls -A "$1"; if touch "$1/x" 2> /dev/null; then echo writable; fi
            umount -l "$1"; if mountpoint -q "$1"; then echo mounted; fi; ls -A "$1"' look "#;
        let seen = self.host(node).text(&format!("{LOOK}{SHARE}"))?;
        ensure!(seen == "phalanx-seal", "beneath the share of {node} is more or less than its seal: {seen:?}");
        Ok(())
    }

    /// A server's last report, as the panel has it.
    ///
    /// # Errors
    /// The panel does not know the server.
    pub fn report(&self, server: &str) -> Result<Value> {
        Ok(self.json(&format!("server show {server}"))?["state"]["report"].clone())
    }

    /// Writes a file below an account's home, as its owner.
    ///
    /// # Errors
    /// The home did not appear, or the file could not be written.
    pub fn put(&self, account: &str, path: &str, content: &str) -> Result<()> {
        let nas = self.host("nas");
        let home = format!("/srv/nas/web/home/{account}");
        eventually(Duration::from_secs(10), &format!("the home of {account}"), || {
            nas.text(&format!("test -d {home}"))
        })?;
        const WRITE: &str = r#"id=$(stat -c %u "$1"); cd "$1" && exec setpriv --reuid "$id" --regid "$id" --clear-groups \
            sh -c 'umask 027; mkdir -p "$(dirname "$1")" && cat > "$1"' write "$2""#;
        nas.exec(&["sh", "-c", WRITE, "put", &home, path], content.as_bytes())?.text().map(drop)
    }

    /// Asks the cluster for a page through the external address, from the client's host.
    ///
    /// # Errors
    /// curl failed to get an answer.
    pub fn get(&self, host_name: &str, path: &str) -> Result<Answer> {
        self.get_at(EXTERNAL, host_name, path)
    }

    /// Asks one node for a page at its own address, from the balancer's host.
    ///
    /// # Errors
    /// curl failed to get an answer.
    pub fn get_from(&self, node: &str, host_name: &str, path: &str) -> Result<Answer> {
        let address = self.address(node)?;
        answer(self.host("lb").run(&ask(&address, host_name, path))?)
    }

    /// The internal address of a host.
    ///
    /// # Errors
    /// The topology has no such host.
    pub fn address(&self, host: &str) -> Result<String> {
        let text =
            self.host(host).text("ip -4 -o addr show scope global | awk '{print $4}' | grep '^10\\.' | head -n 1")?;
        Ok(text.split('/').next().unwrap_or_default().to_owned())
    }

    /// Makes `host` a member through `upstream` and starts its agent.
    ///
    /// # Errors
    /// A command failed.
    pub fn join(&self, host: &str, upstream: &str) -> Result<()> {
        let answer = self.json(&format!("server token {host}"))?;
        let token = answer["token"].as_str().with_context(|| format!("no token in {answer}"))?;
        let upstream = self.address(upstream)?;
        let machine = self.host(host);
        machine.text(&format!("phalanx agent join --upstream {upstream} --token {token}"))?;
        machine.text("systemctl enable --now --quiet phalanx-agent").map(drop)
    }

    /// Waits until these members of clusters have said, after this call, that they are as the panel wants them now, and that the web
    /// nodes among them are in service. They must say so in two reports: one that was made while a node took up its spec may hold the
    /// verdict on the spec before.
    ///
    /// # Errors
    /// They did not get there; what stands in the way is in the error.
    pub fn settled(&self, servers: &[&str]) -> Result<()> {
        let called = self.json("status")?["at"].as_str().context("the status has no time")?.to_owned();
        let first = self.well_since(servers, &called)?;
        self.well_since(servers, &first).map(drop)
    }

    /// Waits until each of `servers` has reported later than `since`, a time of the panel's clock, and was well; returns when that was.
    fn well_since(&self, servers: &[&str], since: &str) -> Result<String> {
        eventually(SETTLE_LIMIT, &format!("that {servers:?} are as they should be"), || {
            let status = self.json("status")?;
            servers.iter().try_for_each(|server| is_well(&status, server, since))?;
            Ok(status["at"].as_str().context("the status has no time")?.to_owned())
        })
    }

    fn get_at(&self, address: &str, host_name: &str, path: &str) -> Result<Answer> {
        answer(self.host("client").run(&ask(address, host_name, path))?)
    }

    fn start_panel(&self) -> Result<()> {
        let cp = self.host("cp");
        cp.text("phalanx panel init")?;
        cp.text("systemctl enable --now --quiet phalanx-panel").map(drop)
    }

    /// The balancer and the NAS, which web and mail have in common.
    fn declare_common(&self) -> Result<()> {
        for line in [
            "server add lb --kind balancer --address 10.9.0.1/24",
            "server add nas --kind nas --address 10.9.0.20/24",
            "cluster add front --kind balancer --master lb",
            "cluster add storage --kind nas --master nas",
        ] {
            self.phalanx(line)?;
        }
        Ok(())
    }

    /// How the NAS can give its shares out.
    fn share_kind(&self) -> &'static str {
        if self.host("nas").is_guest() { "nfs-managed" } else { "local" }
    }

    fn declare_web(&self) -> Result<()> {
        let share_kind = self.share_kind();
        for line in [
            "server add web1 --kind web --address 10.9.0.11/24",
            "server add web2 --kind web --address 10.9.0.12/24",
            &format!("share add content --kind {share_kind} --nas storage --path /srv/nas/web"),
            "cluster add web --kind web --master web1 --share content",
            "cluster add-slave web web2",
            &format!("address add {EXTERNAL}:80 --balancer front --cluster web --port 80"),
            &format!("logical-server add {LOGICAL} --server web1"),
        ] {
            self.phalanx(line)?;
        }
        Ok(())
    }
}

/// Whether the last report of `server` is later than `since`, not behind the panel's own positions, and good.
fn is_well(status: &Value, server: &str, since: &str) -> Result<()> {
    let clusters = status["clusters"].as_array().context("the status has no clusters")?;
    let is_it = |node: &&Value| node["server"] == server;
    let found = clusters.iter().find_map(|cluster| Some((cluster, cluster["nodes"].as_array()?.iter().find(is_it)?)));
    let (cluster, node) = found.with_context(|| format!("{server} is in no cluster: {status}"))?;
    // Both are RFC 3339 in UTC with whole seconds, so the texts are in the order of the times.
    let is_fresh = node["last_seen"].as_str().is_some_and(|seen| seen > since);
    ensure!(node["connected"] == true && is_fresh, "{server} has not reported since {since}: {node}");
    let is_behind = node["spec_behind"] != false || node["directory_behind"] != false;
    ensure!(!is_behind && node["converged"] == true, "{server}: {node}");
    ensure!(cluster["kind"] != "web" || node["in_service"] == true, "{server}: {node}");
    Ok(())
}

/// What a client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

fn ask(address: &str, host_name: &str, path: &str) -> String {
    format!("curl -sS -m 10 -w '\\n%{{http_code}}' -H 'Host: {host_name}' 'http://{address}{path}'")
}

fn answer(output: Output) -> Result<Answer> {
    let text = output.text()?;
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    Ok(Answer { status: status.trim().parse().with_context(|| format!("curl wrote {text:?}"))?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_fresh_and_good_report_of_the_current_spec_settles() {
        let node = json!({
            "server": "web2", "connected": true, "last_seen": "2026-01-01T00:00:02Z", "converged": true, "in_service": true,
            "spec_behind": false, "directory_behind": false,
        });
        let check = |node: &Value| {
            let status = json!({ "clusters": [{ "kind": "web", "nodes": [node] }] });
            is_well(&status, "web2", "2026-01-01T00:00:01Z")
        };
        check(&node).unwrap();
        for (key, value) in [
            ("connected", json!(false)),
            ("last_seen", json!("2026-01-01T00:00:01Z")),
            ("last_seen", Value::Null),
            ("converged", json!(false)),
            ("in_service", json!(false)),
            ("spec_behind", json!(true)),
            ("directory_behind", json!(true)),
            ("server", json!("web3")),
        ] {
            let mut other = node.clone();
            other[key] = value.clone();
            assert!(check(&other).is_err(), "{key} = {value} settles");
        }
    }
}
