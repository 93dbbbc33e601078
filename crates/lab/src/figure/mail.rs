//! The mail half of Figure 1: a balancer, two mail nodes, a NAS and the panel; and `world`, the host of everybody else: its mail server
//! keeps what it gets, and its DNS says where mail goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Figure;
use crate::{Background, eventually};

/// The external address of the mail cluster.
pub const MAIL_EXTERNAL: &str = "198.51.100.25";
/// The name of the mail cluster in the DNS.
pub const MAIL_NAME: &str = "mail.example.net";
/// The nodes of the mail cluster, its master first.
pub const MAIL_NODES: [&str; 2] = ["mail1", "mail2"];
/// The logical server for mail.
pub const MAIL_LOGICAL: &str = "post";
/// A domain of the world's.
pub const FAR: &str = "far.example";
/// What mail nodes serve.
const PORTS: [u16; 8] = [25, 465, 587, 110, 995, 143, 993, 4190];
/// Another, whose mail is signed with the key in [`SIGNED_KEY`] under the selector `key` and comes from the world's address; what does not is to be
/// refused, by its own words.
pub const SIGNED: &str = "signed.example";
/// Where the world has that key.
pub const SIGNED_KEY: &str = "/run/signed.key";
/// A domain that sends no mail at all, by its own words.
pub const STRICT: &str = "strict.example";
const WORLD: &str = "198.51.100.100";
const SINK: &str = include_str!("sink.py");
/// Where the world keeps what it got.
const KEPT: &str = "/var/spool/world.jsonl";

/// The world's daemons, for as long as this lives.
#[derive(Debug)]
pub struct World {
    _sink: Background,
    _dns: Background,
}

impl Figure {
    /// As [`Figure::scenario`], for the mail cluster.
    ///
    /// # Errors
    /// What failed, and the folder with the journals.
    pub fn scenario_mail(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play_mail("mail", test)
    }

    /// As [`Figure::scenario_mail`], on real NFS: NAS and mail nodes have a kernel of their own.
    ///
    /// # Errors
    /// What failed, and the folder with the journals.
    pub fn scenario_mail_nfs(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play_mail("mail-nfs", test)
    }

    fn play_mail(topology: &str, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::play(topology, |figure| {
            let _world = figure.set_up_mail()?;
            test(figure)
        })
    }

    /// Starts the world and the panel, declares the mail cluster, lets its machines join and waits until all are as they should be.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn set_up_mail(&self) -> Result<World> {
        let world = self.start_world()?;
        self.start_panel()?;
        self.declare_common()?;
        self.declare_mail()?;
        for (host, upstream) in [("nas", "cp"), ("lb", "cp"), ("mail1", "cp"), ("mail2", "mail1")] {
            self.join(host, upstream)?;
        }
        self.settled(&["mail1", "mail2", "nas", "lb"])?;
        // In a guest of 384 MiB it takes minutes; mail goes on without it.
        if !self.host("mail1").is_guest() {
            self.filters_run()?;
        }
        Ok(world)
    }

    /// As [`Figure::set_up`] and [`Figure::set_up_mail`] at once: both clusters behind one balancer, on one NAS.
    ///
    /// # Errors
    /// What went wrong, with the words of the command that failed.
    pub fn set_up_whole(&self) -> Result<World> {
        let world = self.start_world()?;
        self.start_panel()?;
        self.declare_common()?;
        self.declare_web()?;
        self.declare_mail()?;
        let masters = [("nas", "cp"), ("lb", "cp"), ("web1", "cp"), ("mail1", "cp")];
        for (host, upstream) in masters.into_iter().chain([("web2", "web1"), ("mail2", "mail1")]) {
            self.join(host, upstream)?;
        }
        self.settled(&["web1", "web2", "mail1", "mail2", "nas", "lb"])?;
        self.filters_run()?;
        Ok(world)
    }

    fn filters_run(&self) -> Result<()> {
        // Nothing waits for the filter, which takes its time to begin; who wants to see signatures does.
        for node in MAIL_NODES {
            eventually(Duration::from_secs(240), &format!("the filter of {node}"), || {
                self.host(node).text("ss -lnt | grep -q 127.0.0.1:11332").map(drop)
            })?;
        }
        Ok(())
    }

    fn declare_mail(&self) -> Result<()> {
        let share_kind = self.share_kind();
        for line in [
            "server add mail1 --kind mail --address 10.9.0.41/24",
            "server add mail2 --kind mail --address 10.9.0.42/24",
            &format!("share add letters --kind {share_kind} --nas storage --path /srv/nas/mail"),
            &format!("cluster add mail --kind mail --master mail1 --share letters --mail-name {MAIL_NAME}"),
            "cluster add-slave mail mail2",
            &format!("logical-server add {MAIL_LOGICAL} --server mail1"),
        ] {
            self.phalanx(line)?;
        }
        for port in PORTS {
            self.phalanx(&format!("address add {MAIL_EXTERNAL}:{port} --balancer front --cluster mail --port {port}"))?;
        }
        Ok(())
    }

    fn start_world(&self) -> Result<World> {
        let world = self.host("world");
        world.write_file("/run/sink.py", SINK.as_bytes())?;
        let sink = world.spawn(&format!(": > {KEPT}; exec python3 /run/sink.py"))?;
        world.text(&format!("openssl genrsa -out {SIGNED_KEY} 1024 2>&1"))?;
        let dns = world.spawn(&format!(
            "exec dnsmasq --keep-in-foreground --no-resolv --no-hosts --user=root --conf-file=/dev/null --local=/#/ \
             --address=/{MAIL_NAME}/{MAIL_EXTERNAL} --address=/mx.{FAR}/{WORLD} --mx-host={FAR},mx.{FAR} --txt-record={FAR},'v=spf1 mx -all' \
             --address=/world.{FAR}/{WORLD} --ptr-record=100.100.51.198.in-addr.arpa,world.{FAR} \
             --txt-record={SIGNED},'v=spf1 ip4:{WORLD} -all' --txt-record=_dmarc.{SIGNED},'v=DMARC1; p=reject' \
             --txt-record=key._domainkey.{SIGNED},\"v=DKIM1; k=rsa; p=$(openssl rsa -in {SIGNED_KEY} -pubout -outform DER 2>/dev/null | base64 -w 0)\" \
             --txt-record={STRICT},'v=spf1 -all' --txt-record=_dmarc.{STRICT},'v=DMARC1; p=reject'"
        ));
        for host in ["world", "mail1", "mail2"] {
            self.host(host).text(&format!("echo nameserver {WORLD} > /etc/resolv.conf"))?;
        }
        eventually(Duration::from_secs(10), "the world's mail server and DNS", || {
            world.text(&format!("ss -lnt | grep -q ':25 ' && test -n \"$(dig +short MX {FAR})\" && dig +short {MAIL_NAME} | grep -q {MAIL_EXTERNAL}")).map(drop)
        })?;
        Ok(World { _sink: sink, _dns: dns? })
    }

    /// An account with a mail domain of these mailboxes, all with the password [`PASSWORD`], known on each node.
    ///
    /// # Errors
    /// A command failed, or a node did not hear of it.
    pub fn mail_domain(&self, account: &str, domain: &str, mailboxes: &[&str]) -> Result<()> {
        self.phalanx(&format!("account add {account} --logical-server {MAIL_LOGICAL}"))?;
        self.phalanx(&format!("mail-domain add {domain} --account {account} --logical-server {MAIL_LOGICAL}"))?;
        for mailbox in mailboxes {
            self.mailbox(&format!("{mailbox}@{domain}"))?;
        }
        Ok(())
    }

    /// A mailbox with the password [`PASSWORD`].
    ///
    /// # Errors
    /// The command failed.
    pub fn mailbox(&self, address: &str) -> Result<()> {
        self.host("cp").text(&format!("echo {PASSWORD} | phalanx mailbox add {address} --password-file -")).map(drop)
    }

    /// Sends a message from the world, through `server`; returns what swaks saw.
    ///
    /// # Errors
    /// swaks could not be run. That a message was refused is no error.
    pub fn swaks(&self, server: &str, words: &str) -> Result<String> {
        let line = format!("swaks --server {server} --timeout 20 --helo world.{FAR} {words} 2>&1");
        Ok(self.host("world").run(&line)?.stdout)
    }

    /// What curl prints for an address such as `imaps://…`, as this mailbox, from the world; TLS is not judged.
    ///
    /// # Errors
    /// curl's words.
    pub fn mail_curl(&self, address: &str, url: &str, more: &str) -> Result<String> {
        self.host("world").text(&format!("curl -sSk -m 20 -u '{address}:{PASSWORD}' '{url}' {more}"))
    }

    /// Waits until the mailbox has a message in its inbox whose source has all of `texts`; returns the source.
    ///
    /// # Errors
    /// None came.
    pub fn has_mail(&self, address: &str, texts: &[&str]) -> Result<String> {
        eventually(Duration::from_secs(30), &format!("a message with {texts:?} for {address}"), || {
            for message in self.inbox(address)? {
                if texts.iter().all(|text| message.contains(text)) {
                    return Ok(message);
                }
            }
            anyhow::bail!("not there yet")
        })
    }

    /// The sources of all messages in a mailbox's inbox, read over IMAP through the balancer.
    ///
    /// # Errors
    /// The inbox can't be read.
    pub fn inbox(&self, address: &str) -> Result<Vec<String>> {
        let url = format!("imaps://{MAIL_EXTERNAL}/INBOX");
        let found = self.mail_curl(address, &url, "-X 'UID SEARCH ALL'")?;
        let uids = found.lines().find_map(|line| line.strip_prefix("* SEARCH")).unwrap_or_default().to_owned();
        uids.split_whitespace().map(|uid| self.mail_curl(address, &format!("{url};UID={uid}"), "")).collect()
    }

    /// Waits until the world got a message that `is_it`; returns it.
    ///
    /// # Errors
    /// None came; all that came is in the error.
    pub fn world_got(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(Duration::from_secs(30), &format!("{what} in the world"), || {
            let text = self.host("world").text(&format!("cat {KEPT}"))?;
            let all: Vec<Value> =
                text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(text.clone())?;
            let found = all.iter().find(|message| is_it(message));
            ensure!(found.is_some(), "the world got {} messages: {text}", all.len());
            Ok(found.cloned().unwrap_or_default())
        })
    }
}

/// The password of every mailbox.
pub const PASSWORD: &str = "correct-horse-battery";
