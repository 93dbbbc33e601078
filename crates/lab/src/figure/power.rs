//! A power switch for the lab's hosts, as a program beside the panel sees it: something on the network that is told to switch a machine off,
//! and asked whether it is.
//!
//! On the panel's host the program `power-switch` asks an HTTP server of its machine; the lab answers it from outside: it takes the
//! power, and looks at the host itself before it says `off`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Figure;
use crate::{Background, Lab, eventually};

/// What servers' fence is set to.
pub const DRIVER: &str = "command:power-switch";
/// The program, as an administrator puts it beside the panel.
const PROGRAM: &str = "#!/bin/sh\nexec curl -sSf -m 25 \"http://127.0.0.1:7070/$1/$2\"\n";
const SERVER: &str = include_str!("power.py");
/// Where the questions lie.
const PLACE: &str = "/run/power";
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The switch, for as long as this lives.
#[derive(Debug)]
pub struct PowerSwitch {
    _server: Background,
    ending: Arc<AtomicBool>,
    operator: Option<JoinHandle<()>>,
}

impl Figure {
    /// Puts a power switch beside the panel, and lets it fence these servers.
    ///
    /// # Errors
    /// A command failed, or the switch does not answer.
    pub fn power_switch(&self, servers: &[&str]) -> Result<PowerSwitch> {
        let cp = self.host("cp");
        cp.write_file("/run/power.py", SERVER.as_bytes())?;
        cp.text(&format!("mkdir -p {PLACE} /etc/phalanx/fence"))?;
        cp.write_file("/etc/phalanx/fence/power-switch", PROGRAM.as_bytes())?;
        cp.text("chown root:root /etc/phalanx/fence/power-switch; chmod 755 /etc/phalanx/fence/power-switch")?;
        let server = cp.spawn("exec python3 /run/power.py")?;
        let ending = Arc::new(AtomicBool::new(false));
        let (lab, end) = (Lab::find(self.lab.name())?, ending.clone());
        let operator = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Err(error) = answer_all(&lab) {
                    eprintln!("the power switch: {error:#}");
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let switch = PowerSwitch { _server: server, ending, operator: Some(operator) };
        eventually(Duration::from_secs(10), "the power switch", || {
            let said = cp.text("/etc/phalanx/fence/power-switch status cp 10.9.0.30")?;
            if said.trim() == "on" { Ok(()) } else { bail!("it says {said:?}") }
        })?;
        for server in servers {
            self.phalanx(&format!("server change {server} --fence {DRIVER}"))?;
        }
        Ok(switch)
    }
}

/// Answers what was asked since the last look. A question is a file `WHAT.HOST.NUMBER`.
fn answer_all(lab: &Lab) -> Result<()> {
    let cp = lab.host("cp")?;
    let questions = cp.text(&format!("cd {PLACE} && ls | grep -v answer || true"))?;
    for question in questions.lines() {
        let mut parts = question.split('.');
        let (what, host) = (parts.next().unwrap_or_default(), parts.next().context("a question has a host")?);
        let answer = match what {
            "off" if has_power(lab, host)? => lab.host(host)?.kill().map(|()| "done")?,
            "off" => "done",
            "status" if has_power(lab, host)? => "on",
            "status" => "off",
            other => bail!("{other:?} can't be asked"),
        };
        cp.text(&format!("cd {PLACE} && echo {answer} > .new && mv .new {question}.answer && rm {question}"))?;
    }
    Ok(())
}

fn has_power(lab: &Lab, host: &str) -> Result<bool> {
    let status = lab.status()?;
    let status =
        status.iter().find(|status| status.name == host).with_context(|| format!("there is no host {host}"))?;
    Ok(status.state != "killed")
}

impl Drop for PowerSwitch {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // It ends within a look; whether it panicked is told by its own words.
        let _ended = self.operator.take().map(JoinHandle::join);
    }
}
