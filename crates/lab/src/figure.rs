//! Figure 1 with the product on it, set up as an administrator would: by the `phalanx` command, on the panel's host and on each server.
//!
//! It chooses nothing that a person could not: every step is a command that the documentation names.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Host, Lab, Options, Output, eventually};

/// The external address of Figure 1's web cluster.
pub const EXTERNAL: &str = "198.51.100.10";

/// How long the whole cluster may take from the last join until it serves.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A running Figure 1: `client → lb → web1 (master), web2 (slave) → nas`, the panel on `cp`; `web3` is a spare machine that knows nothing yet.
#[derive(Debug)]
pub struct Figure {
    /// The lab that it runs in.
    pub lab: Lab,
}

/// The cluster's logical server.
pub const LOGICAL: &str = "www";

impl Figure {
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
        figure.start_panel()?;
        figure.declare()?;
        for (host, upstream) in [("nas", "cp"), ("lb", "cp"), ("web1", "cp"), ("web2", "web1")] {
            figure.join(host, upstream)?;
        }
        figure.settled(&["web1", "web2", "nas", "lb"])?;
        Ok(figure)
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

    /// An account with one site, whose document root holds the given files. Returns once every node serves it.
    ///
    /// # Errors
    /// A command failed, or the site was not live in time.
    pub fn site(&self, account: &str, host_name: &str, files: &[(&str, &str)]) -> Result<()> {
        self.phalanx(&format!("account add {account} --logical-server {LOGICAL}"))?;
        self.phalanx(&format!("site add {host_name} --account {account}"))?;
        for (name, content) in files {
            self.put(account, &format!("sites/{host_name}/{name}"), content)?;
        }
        Ok(())
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

    /// Waits until these servers are as they should be, and the nodes among them are in service.
    ///
    /// # Errors
    /// They did not get there; the last `phalanx status` is in the error.
    pub fn settled(&self, servers: &[&str]) -> Result<()> {
        eventually(SETTLE_LIMIT, &format!("that {servers:?} are as they should be"), || {
            for server in servers {
                let shown = self.json(&format!("server show {server}"))?;
                let report = &shown["state"]["report"];
                ensure!(report["converged"] == true, "{server}: {shown}");
                ensure!(!server.starts_with("web") || report["in_service"] == true, "{server}: {shown}");
            }
            Ok(())
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

    fn declare(&self) -> Result<()> {
        let share_kind = if self.host("nas").is_guest() { "nfs-managed" } else { "local" };
        for line in [
            "server add lb --kind balancer --address 10.9.0.1/24",
            "server add nas --kind nas --address 10.9.0.20/24",
            "server add web1 --kind web --address 10.9.0.11/24",
            "server add web2 --kind web --address 10.9.0.12/24",
            "cluster add front --kind balancer --master lb",
            "cluster add storage --kind nas --master nas",
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
