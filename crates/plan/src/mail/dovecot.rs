//! Dovecot, twice: the one on every node that knows who may log in and opens no mailbox, and the holder's that opens them.
//!
//! Settings are those of Dovecot 2.3 (its manual at doc.dovecot.org). Mailboxes lie on storage that several machines see, so what its page on
//! NFS demands is set; that one machine at a time opens a mailbox is what the grant of the mailboxes is for.

use super::lookup::{self, LOGINS};
use super::postfix::LOGIN_SOCKET;
use super::{LOGS, port};
use crate::render::Files;
use crate::spec::NodeSpec;
use crate::spec::mail::MailSpec;
use crate::steps::desired::LIVE;
use phalanx_model::HostName;
use std::fmt::Write as _;

/// The file of the one that opens mailboxes.
pub const MAILBOXES_FILE: &str = "mailboxes.conf";
/// The file of the one that knows who may log in.
pub const LOGINS_FILE: &str = "logins.conf";
/// The service that tells owners of mailboxes that these fill up.
const QUOTA_WARNING: &str = "quota-warning";
/// The queries of both.
pub const SQL_FILE: &str = "logins-sql.conf";

/// The files. The one that opens mailboxes has its file on the holder alone.
pub fn files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    let mut files = Files::from([(LOGINS_FILE.to_owned(), logins()), (SQL_FILE.to_owned(), sql())]);
    if mail.mailboxes.holder.as_ref().is_some_and(|holder| holder.server == spec.server) {
        files.insert(MAILBOXES_FILE.to_owned(), mailboxes(mail));
    }
    files
}

fn sql() -> String {
    // A query stands on one line; `%` begins a variable, which only ours do.
    format!(
        "# Written by phalanx; see Dovecot's manual on SQL.\ndriver = sqlite\nconnect = {LOGINS}\npassword_query = {}\nuser_query = {}\niterate_query = {}\n",
        lookup::PASSWORD,
        lookup::USER,
        lookup::USERS
    )
}

/// Writes Dovecot's settings.
struct Settings {
    text: String,
    depth: usize,
}

impl Settings {
    fn new() -> Self {
        Self { text: "# Written by phalanx; see Dovecot's manual.\n".to_owned(), depth: 0 }
    }

    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = value.to_string().replace(|c: char| c.is_control(), "_");
        writeln!(self.text, "{}{name} = {value}", "  ".repeat(self.depth)).expect("a String takes everything");
    }

    fn section(&mut self, head: impl std::fmt::Display, inside: impl FnOnce(&mut Self)) {
        writeln!(self.text, "{}{head} {{", "  ".repeat(self.depth)).expect("a String takes everything");
        self.depth += 1;
        inside(self);
        self.depth -= 1;
        writeln!(self.text, "{}}}", "  ".repeat(self.depth)).expect("a String takes everything");
    }

    /// Which machine-wide names an instance has, and how logins are proven.
    fn instance(&mut self, name: &str) {
        self.set("base_dir", format!("/run/phalanx/{name}"));
        self.set("state_dir", format!("/var/lib/phalanx/{name}"));
        self.set("instance_name", format!("phalanx-{name}"));
        self.set("log_path", format!("{LOGS}/{name}.log"));
        // In UTC, as the units have it; `logs::mail` reads it.
        self.set("log_timestamp", "\"%Y-%m-%dT%H:%M:%S \"");
        self.set("listen", "127.0.0.1");
        self.set("auth_mechanisms", "plain login");
        self.set("auth_username_format", "%Lu");
        // A guesser is slowed down; a change of a password counts at once.
        self.set("auth_failure_delay", "2 secs");
        self.set("auth_cache_size", "0");
        self.section("passdb", |passdb| {
            passdb.set("driver", "sql");
            passdb.set("args", format!("{LIVE}/{SQL_FILE}"));
        });
    }
}

fn logins() -> String {
    let mut conf = Settings::new();
    conf.instance("logins");
    conf.set("protocols", "");
    conf.set("ssl", "no");
    conf.section("userdb", |userdb| {
        userdb.set("driver", "static");
        userdb.set("args", "uid=65534 gid=65534 home=/nonexistent");
    });
    conf.section("service auth", |auth| {
        auth.section(format!("unix_listener {LOGIN_SOCKET}"), |socket| {
            socket.set("mode", "0660");
            socket.set("user", "postfix");
            socket.set("group", "postfix");
        });
    });
    conf.text
}

fn mailboxes(mail: &MailSpec) -> String {
    let mut conf = Settings::new();
    conf.instance("mailboxes");
    conf.set("protocols", "imap pop3 lmtp sieve");
    conf.section("userdb", |userdb| {
        userdb.set("driver", "sql");
        userdb.set("args", format!("{LIVE}/{SQL_FILE}"));
    });
    conf.set("hostname", &mail.host_name);
    conf.set("login_greeting", "ready");
    conf.set("postmaster_address", format!("postmaster@{}", mail.host_name));
    conf.set("submission_host", format!("127.0.0.1:{}", port::FROM_MAILBOXES));
    conf.set("recipient_delimiter", "+");
    conf.set("deliver_log_format", "\"msgid=%m, size=%p: %$\"");
    tls(&mut conf);
    storage(&mut conf);
    plugins(&mut conf);
    folders(&mut conf);
    services(&mut conf);
    quota_warning(&mut conf, &mail.host_name);
    conf.text
}

fn tls(conf: &mut Settings) {
    let file = format!("<{LIVE}/{}", super::router::TLS_FILE);
    conf.set("ssl", "yes");
    conf.set("ssl_cert", &file);
    conf.set("ssl_key", &file);
    conf.set("ssl_min_protocol", "TLSv1.2");
    conf.set("disable_plaintext_auth", "yes");
    // The hop says whose connection it is; nobody else can reach these ports.
    conf.set("haproxy_trusted_networks", "127.0.0.0/8");
    conf.set("haproxy_timeout", "5 secs");
}

fn storage(conf: &mut Settings) {
    conf.set("mail_location", "maildir:~/Maildir");
    conf.set("mmap_disable", "yes");
    conf.set("mail_fsync", "always");
    conf.set("mail_nfs_storage", "no");
    conf.set("mail_nfs_index", "no");
    conf.set("first_valid_uid", phalanx_model::Uid::FIRST);
    conf.set("last_valid_uid", phalanx_model::Uid::PROBE);
    conf.set("first_valid_gid", phalanx_model::Uid::FIRST);
    conf.set("mail_privileged_group", "");
    conf.set("mail_max_userip_connections", "50");
}

fn plugins(conf: &mut Settings) {
    conf.set("mail_plugins", "quota");
    conf.section("protocol imap", |imap| imap.set("mail_plugins", "quota imap_quota"));
    conf.section("protocol lmtp", |lmtp| lmtp.set("mail_plugins", "quota sieve"));
    conf.set("lmtp_rcpt_check_quota", "yes");
    conf.section("plugin", |plugin| {
        plugin.set("quota", "count:User quota");
        plugin.set("quota_vsizes", "yes");
        plugin.set("quota_grace", "10%%");
        // The first mark that was passed counts: the highest comes first.
        for (number, percent) in [("", 95), ("2", 80)] {
            plugin.set(&format!("quota_warning{number}"), format!("storage={percent}%% {QUOTA_WARNING} {percent} %u"));
        }
        plugin.set("quota_exceeded_message", "The mailbox is full.");
        plugin.set("quota_status_success", "DUNNO");
        plugin.set("quota_status_nouser", "DUNNO");
        plugin.set("quota_status_overquota", "\"552 5.2.2 The mailbox is full\"");
        plugin.set("sieve", "file:~/sieve;active=~/active.sieve");
        // Refusing what was taken, and messages to whom a script likes, would be mail that nobody asked for.
        plugin.set("sieve_extensions", "-reject -enotify");
        plugin.set("sieve_vacation_min_period", "1d");
        // So that an answer's author can be told to be its sender's.
        plugin.set("sieve_vacation_send_from_recipient", "yes");
        plugin.set("sieve_max_redirects", "4");
        plugin.set("sieve_max_script_size", "256k");
        plugin.set("sieve_quota_max_scripts", "32");
        plugin.set("sieve_quota_max_storage", "1M");
    });
}

fn folders(conf: &mut Settings) {
    conf.section("namespace inbox", |inbox| {
        inbox.set("inbox", "yes");
        for (name, special) in [("Drafts", "\\Drafts"), ("Junk", "\\Junk"), ("Sent", "\\Sent"), ("Trash", "\\Trash")] {
            inbox.section(format!("mailbox {name}"), |folder| {
                folder.set("special_use", special);
                folder.set("auto", "subscribe");
            });
        }
    });
}

/// Whoever passes a mark asks for the letter, which are processes of each domain's own user. Its sender is no mailbox, as is that of bounces.
fn quota_warning(conf: &mut Settings, host_name: &HostName) {
    conf.section(format!("service {QUOTA_WARNING}"), |service| {
        service.set("executable", format!("script /usr/lib/phalanx/quota-warning {host_name}"));
        service.section(format!("unix_listener {QUOTA_WARNING}"), |socket| socket.set("mode", "0666"));
    });
}

/// Listeners for the hop alone; those that Dovecot has by itself are closed.
fn services(conf: &mut Settings) {
    let closed = |service: &mut Settings, names: &[&str]| {
        for name in names {
            service.section(format!("inet_listener {name}"), |listener| listener.set("port", 0));
        }
    };
    let for_hop = |service: &mut Settings, name: &str, port: u16, tls: bool| {
        service.section(format!("inet_listener {name}"), |listener| {
            listener.set("address", "127.0.0.1");
            listener.set("port", port);
            listener.set("haproxy", "yes");
            if tls {
                listener.set("ssl", "yes");
            }
        });
    };
    conf.section("service imap-login", |login| {
        closed(login, &["imap", "imaps"]);
        for_hop(login, "hop", port::DOVECOT_IMAP, false);
        for_hop(login, "hop-tls", port::DOVECOT_IMAPS, true);
    });
    conf.section("service pop3-login", |login| {
        closed(login, &["pop3", "pop3s"]);
        for_hop(login, "hop", port::DOVECOT_POP3, false);
        for_hop(login, "hop-tls", port::DOVECOT_POP3S, true);
    });
    conf.section("service managesieve-login", |login| {
        closed(login, &["sieve"]);
        for_hop(login, "hop", port::DOVECOT_SIEVE, false);
    });
    for (service, executable, listener, port) in [
        ("lmtp", None, "hop", port::DOVECOT_LMTP),
        ("quota-status", Some("quota-status -p postfix"), "hop", port::DOVECOT_QUOTA),
    ] {
        conf.section(format!("service {service}"), |section| {
            if let Some(executable) = executable {
                section.set("executable", executable);
            }
            section.section(format!("inet_listener {listener}"), |listener| {
                listener.set("address", "127.0.0.1");
                listener.set("port", port);
            });
        });
    }
}
