//! Postfix: takes mail in on every node, and sends it on.
//!
//! postconf(5) and master(5) say what each name means. What shapes these files:
//! - A look-up that fails defers. All of them are `proxy:sqlite:`, whose errors smtpd(8) answers with 4xx.
//! - Mail for a mailbox goes by LMTP to this node's hop (see [`super`]). An answer that would bounce what was taken with 250 becomes one to
//!   try again later ([`LATER`]): the holder may not have heard yet of a mailbox that this node knows.
//! - Mail from elsewhere that an alias sends on leaves under an address of ours (SRS), or the next server would refuse it for its
//!   sender's SPF. Postfix' own means rewrite all senders or none; so mail to the world from a sender that is none of ours takes a second turn
//!   through Postfix, in which only its sender is rewritten. [`super::lookup::STRAIGHT`] exempts our own senders.

use super::lookup::{self, RECIPIENTS};
use super::{LOGS, port};
use crate::render::Files;
use crate::spec::NodeSpec;
use crate::spec::mail::{MailSpec, QueueSpec};
use crate::steps::desired::LIVE;
use phalanx_model::Name;
use phalanx_model::mail::MailProtocol;
use std::fmt::Write as _;

/// The directory below the live generation that is Postfix' configuration directory.
pub const DIRECTORY: &str = "postfix";
/// The directory below the live generation with a configuration for each queue that the node has adopted, by server.
pub const ADOPTED: &str = "adopted";
/// Where a node's own queue lies if its cluster has no share; checkers look at it, wherever the queue is.
pub const QUEUE: &str = "/var/lib/phalanx/queue";
/// Where its daemons keep what is theirs alone.
pub const DATA: &str = "/var/lib/phalanx/postfix";
/// Where Postfix asks whether a login is right: a socket of the Dovecot that runs on every node.
pub const LOGIN_SOCKET: &str = "/run/phalanx/logins/postfix";

/// Answers of the holder that are not final: what smtpd(8) let in has a mailbox, or will have one in a moment.
const LATER: &str = "/^550[ -]5\\.1\\.1(.*)/ 450 4.1.1$1\n/^552[ -]5\\.2\\.2(.*)/ 452 4.2.2$1\n";

/// The tables of regular expressions among its files.
pub const TABLES: [&str; 2] = ["lmtp_replies", "commands"];

/// What smtpd(8) makes of commands before it reads them. It takes mail for `<postmaster>` without a domain unasked, whoever that may be; with a
/// domain it is looked up as every other recipient is, and one that is nobody is refused instead of bounced. So each recipient gets a domain.
fn commands(mail: &MailSpec) -> String {
    format!("/^RCPT[[:space:]]+TO:[[:space:]]*<(@[^>]*:)?([^@>]*)>(.*)$/ RCPT TO:<$2@{}>$3\n", mail.host_name)
}

/// Its files.
pub fn files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    let mut files = Files::from([
        (format!("{DIRECTORY}/lmtp_replies"), LATER.to_owned()),
        (format!("{DIRECTORY}/commands"), commands(mail)),
    ]);
    for (of, queue) in &mail.queues {
        let (directory, instance) = match *of == spec.server {
            true => (DIRECTORY.to_owned(), Instance::own(queue)),
            false => (format!("{ADOPTED}/{of}"), Instance::adopted(of, queue)),
        };
        files.insert(format!("{directory}/main.cf"), main_cf(mail, &instance));
        files.insert(format!("{directory}/master.cf"), master_cf(mail, &instance));
    }
    for (name, query) in MAPS {
        files.insert(format!("{DIRECTORY}/{name}.cf"), format!("dbpath = {RECIPIENTS}\nquery = {query}\n"));
    }
    files
}

/// A running Postfix.
struct Instance {
    /// What its log lines begin with, and what it is called among Postfixes.
    name: String,
    queue: String,
    data: String,
    /// Whether it takes mail from others. One that only empties a queue that it has adopted does not.
    takes_mail: bool,
}

impl Instance {
    fn own(queue: &QueueSpec) -> Self {
        Self { name: "phalanx-postfix".into(), queue: queue.directory(), data: DATA.into(), takes_mail: true }
    }

    fn adopted(of: &Name, queue: &QueueSpec) -> Self {
        let (name, data) = (format!("phalanx-postfix-queue-{of}"), format!("{DATA}-queue-{of}"));
        Self { name, queue: queue.directory(), data, takes_mail: false }
    }
}

/// The look-ups, each in a file of its own (sqlite_table(5)).
const MAPS: [(&str, &str); 6] = [
    ("domains", lookup::DOMAINS),
    ("mailboxes", lookup::MAILBOXES),
    ("aliases", lookup::ALIASES),
    ("suspended", lookup::SUSPENDED),
    ("senders", lookup::SENDERS),
    ("straight", lookup::STRAIGHT),
];

fn map(name: &str) -> String {
    format!("proxy:sqlite:{LIVE}/{DIRECTORY}/{name}.cf")
}

/// Writes main.cf: a `$` of a value stands for itself, and a line is a line.
struct MainCf(String);

impl MainCf {
    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = value.to_string().replace('$', "$$").replace(|c: char| c.is_control(), "_");
        writeln!(self.0, "{name} = {value}").expect("a String takes everything");
    }

    /// A value that refers to others by `$`.
    fn set_as_is(&mut self, name: &str, value: &str) {
        writeln!(self.0, "{name} = {value}").expect("a String takes everything");
    }

    fn about(&mut self, what: &str) {
        writeln!(self.0, "\n# {what}").expect("a String takes everything");
    }
}

fn main_cf(mail: &MailSpec, instance: &Instance) -> String {
    let host = &mail.host_name;
    let mut cf = MainCf("# Written by phalanx; see postconf(5).\n".to_owned());
    cf.set("compatibility_level", "3.6");
    cf.set("queue_directory", &instance.queue);
    cf.set("data_directory", &instance.data);
    cf.set("command_directory", "/usr/sbin");
    cf.set("daemon_directory", "/usr/lib/postfix/sbin");
    cf.set("mail_owner", "postfix");
    cf.set("setgid_group", "postdrop");
    cf.set("multi_instance_name", &instance.name);
    cf.set("syslog_name", &instance.name);
    cf.set("maillog_file", format!("{LOGS}/postfix.log"));
    cf.set("maillog_file_prefixes", LOGS);
    cf.set("enable_long_queue_ids", "yes");
    // A daemon that could not start, for want of a look-up file, is tried again soon: it is being made anew.
    cf.set("service_throttle_time", "5s");

    cf.about("Who this is.");
    cf.set("myhostname", host);
    cf.set("myorigin", host);
    cf.set("smtpd_banner", format!("{host} ESMTP"));
    cf.set("mydestination", "");
    cf.set("local_recipient_maps", "");
    cf.set("local_transport", "error:5.1.1 there are no mailboxes of the machine");
    cf.set("alias_maps", "");
    cf.set("alias_database", "");
    cf.set("mynetworks", "");
    cf.set("inet_protocols", "ipv4");
    cf.set("inet_interfaces", "all");
    cf.set("smtp_bind_address", mail.send_from);
    cf.set("append_dot_mydomain", "no");
    cf.set("biff", "no");

    cf.about("What is taken, and where it goes.");
    cf.set("virtual_mailbox_domains", map("domains"));
    cf.set("virtual_mailbox_maps", map("mailboxes"));
    cf.set("virtual_alias_maps", map("aliases"));
    cf.set("virtual_alias_domains", host);
    cf.set("virtual_transport", format!("lmtp:inet:127.0.0.1:{}", port::LOCAL_LMTP));
    cf.set("lmtp_reply_filter", format!("regexp:{LIVE}/{DIRECTORY}/lmtp_replies"));
    cf.set("lmtp_destination_recipient_limit", "1");
    // When mailboxes move, connections are waited for: one that is kept for the next letter would be cut in the middle of it.
    cf.set("lmtp_connection_cache_on_demand", "no");
    cf.set("recipient_delimiter", "+");
    cf.set("virtual_alias_expansion_limit", "1000");
    cf.set("virtual_alias_recursion_limit", "20");
    cf.set("message_size_limit", 50 << 20);
    cf.set("virtual_mailbox_limit", "0");
    cf.set("smtpd_recipient_limit", "1000");
    cf.set("line_length_limit", "2048");
    // A line goes on as it came, however long: one that is broken in two is another text, and its signature (DKIM) fails.
    cf.set("smtp_line_length_limit", "0");
    cf.set("lmtp_line_length_limit", "0");
    cf.set("smtputf8_enable", "no");
    cf.set("strict_rfc821_envelopes", "yes");
    // Against SMTP smuggling: only CR LF ends a line (RFC 5321, 2.3.8), who ends one otherwise is refused, a lone CR in a message becomes a
    // blank, and nobody talks ahead of the answers.
    cf.set("smtpd_forbid_bare_newline", "reject");
    cf.set("cleanup_replace_stray_cr_lf", "yes");
    cf.set("smtpd_forbid_unauth_pipelining", "yes");
    cf.set("smtpd_data_restrictions", "reject_unauth_pipelining");
    cf.set("smtpd_command_filter", format!("regexp:{LIVE}/{DIRECTORY}/commands"));
    cf.set("smtpd_discard_ehlo_keywords", "silent-discard, chunking, etrn");
    cf.set("disable_vrfy_command", "yes");
    cf.set("smtpd_helo_required", "yes");
    cf.set("smtpd_delay_reject", "yes");
    cf.set("smtpd_reject_unlisted_recipient", "yes");
    cf.set("smtpd_reject_unlisted_sender", "yes");
    cf.set("smtpd_relay_restrictions", "reject_unauth_destination");
    cf.set(
        "smtpd_recipient_restrictions",
        format!(
            "reject_non_fqdn_recipient, reject_non_fqdn_sender, reject_unlisted_recipient, check_recipient_access {}, \
             check_policy_service inet:127.0.0.1:{}",
            map("suspended"),
            port::LOCAL_QUOTA
        ),
    );
    // Whether there is room is asked as a courtesy to the sender. Nobody there to say so: the mail is taken, and waits here.
    cf.set("smtpd_policy_service_default_action", "DUNNO");
    cf.set("smtpd_policy_service_timeout", "5s");
    cf.set("smtpd_policy_service_request_limit", "1");
    cf.set("smtpd_sender_login_maps", map("senders"));
    cf.set_as_is(
        "proxy_read_maps",
        "$virtual_mailbox_domains $virtual_mailbox_maps $virtual_alias_maps $smtpd_sender_login_maps \
         $sender_dependent_default_transport_maps $smtpd_recipient_restrictions",
    );

    cf.about("Forwarded mail leaves under an address of ours.");
    cf.set("sender_dependent_default_transport_maps", map("straight"));
    cf.set("default_transport", format!("forwarded:[127.0.0.1]:{}", port::FORWARDED));
    cf.set("recipient_canonical_maps", format!("tcp:127.0.0.1:{}", port::SRS_REVERSE));
    cf.set("recipient_canonical_classes", "envelope_recipient");

    cf.about("TLS.");
    cf.set("smtpd_tls_chain_files", format!("{LIVE}/{}", super::router::TLS_FILE));
    cf.set("smtpd_tls_security_level", "may");
    cf.set("smtpd_tls_auth_only", "yes");
    cf.set("smtpd_tls_mandatory_protocols", ">=TLSv1.2");
    cf.set("smtpd_tls_loglevel", "1");
    cf.set("smtp_tls_security_level", "may");
    cf.set("smtp_tls_CAfile", "/etc/ssl/certs/ca-certificates.crt");
    cf.set("smtp_tls_loglevel", "1");
    cf.set("smtpd_sasl_type", "dovecot");
    cf.set("smtpd_sasl_path", format!("unix:{LOGIN_SOCKET}"));
    cf.set("smtpd_sasl_security_options", "noanonymous");

    cf.about("The filter: it signs, judges and delays. Mail goes on without it.");
    cf.set("smtpd_milters", format!("inet:127.0.0.1:{}", port::FILTER));
    cf.set("milter_default_action", "accept");
    cf.set("milter_protocol", "6");
    cf.set("milter_mail_macros", "i {mail_addr} {client_addr} {client_name} {auth_authen}");
    cf.0
}

/// Services besides those for the world: name, type, private, unprivileged, chroot, wakeup, processes at most, command and arguments.
const SERVICES: &str = "\
pickup    unix  n  -  n  60     1  pickup
cleanup   unix  n  -  n  -      0  cleanup
qmgr      unix  n  -  n  300    1  qmgr
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
rewrite   unix  -  -  n  -      -  trivial-rewrite
bounce    unix  -  -  n  -      0  bounce
defer     unix  -  -  n  -      0  bounce
trace     unix  -  -  n  -      0  bounce
verify    unix  -  -  n  -      1  verify
flush     unix  n  -  n  1000?  0  flush
proxymap  unix  -  -  n  -      -  proxymap
proxywrite unix -  -  n  -      1  proxymap
smtp      unix  -  -  n  -      -  smtp
relay     unix  -  -  n  -      -  smtp
showq     unix  n  -  n  -      -  showq
error     unix  -  -  n  -      -  error
retry     unix  -  -  n  -      -  error
discard   unix  -  -  n  -      -  discard
lmtp      unix  -  -  n  -      -  lmtp
anvil     unix  -  -  n  -      1  anvil
scache    unix  -  -  n  -      1  scache
postlog   unix-dgram n - n -    1  postlogd
";

fn master_cf(mail: &MailSpec, instance: &Instance) -> String {
    let mut cf = format!("# Written by phalanx; see master(5).\n{SERVICES}");
    service(&mut cf, "forwarded unix - - n - - smtp", &[("smtp_bind_address", "127.0.0.1")]);
    if instance.takes_mail {
        entrances(&mut cf, mail);
    }
    cf
}

/// Where it takes mail in.
fn entrances(cf: &mut String, mail: &MailSpec) {
    for (at, protocol) in &mail.listen {
        let options: &[(&str, &str)] = match protocol {
            MailProtocol::Smtp => &[],
            MailProtocol::Submission => {
                &[("syslog_name", "phalanx-postfix/submission"), ("smtpd_tls_security_level", "encrypt")]
            }
            MailProtocol::Submissions => &[
                ("syslog_name", "phalanx-postfix/submissions"),
                ("smtpd_tls_wrappermode", "yes"),
                ("smtpd_tls_security_level", "encrypt"),
            ],
            MailProtocol::Imap
            | MailProtocol::Imaps
            | MailProtocol::Pop3
            | MailProtocol::Pop3s
            | MailProtocol::Sieve => continue,
        };
        service(cf, &format!("{at} inet n - n - - smtpd"), options);
        if *protocol != MailProtocol::Smtp {
            service(cf, "", &SUBMISSION);
        }
    }
    service(cf, &format!("127.0.0.1:{} inet n - n - - smtpd", port::FORWARDED), &SECOND_TURN);
    service(cf, &format!("127.0.0.1:{} inet n - n - - smtpd", port::FROM_MAILBOXES), &FROM_MAILBOXES);
    service(cf, "rewrite-sender unix n - n - 0 cleanup", &REWRITE_SENDER);
}

/// For those who log in: they send as what they own, to whom they like.
const SUBMISSION: [(&str, &str); 7] = [
    ("smtpd_sasl_auth_enable", "yes"),
    ("smtpd_client_restrictions", "permit_sasl_authenticated,reject"),
    ("smtpd_sender_restrictions", "reject_sender_login_mismatch"),
    ("smtpd_relay_restrictions", "permit_sasl_authenticated,reject"),
    ("smtpd_recipient_restrictions", "permit_sasl_authenticated,reject"),
    ("smtpd_data_restrictions", "reject_unauth_pipelining"),
    ("milter_macro_daemon_name", "ORIGINATING"),
];

/// For Dovecot of the same node: what Sieve sends.
const FROM_MAILBOXES: [(&str, &str); 4] = [
    ("syslog_name", "phalanx-postfix/from-mailboxes"),
    ("mynetworks", "127.0.0.1/32"),
    ("smtpd_relay_restrictions", "permit_mynetworks,reject"),
    ("smtpd_recipient_restrictions", "permit_mynetworks,reject"),
];

/// The second turn of forwarded mail: it was judged in the first.
const SECOND_TURN: [(&str, &str); 8] = [
    ("syslog_name", "phalanx-postfix/forwarded"),
    ("content_filter", "smtp:"),
    ("cleanup_service_name", "rewrite-sender"),
    ("smtpd_client_restrictions", ""),
    ("smtpd_recipient_restrictions", ""),
    ("mynetworks", "127.0.0.1/32"),
    ("smtpd_relay_restrictions", "permit_mynetworks,reject"),
    ("receive_override_options", "no_unknown_recipient_checks,no_header_body_checks,no_milters"),
];

/// What rewrites the sender, and nothing else.
const REWRITE_SENDER: [(&str, &str); 5] = [
    ("syslog_name", "phalanx-postfix/forwarded"),
    ("sender_canonical_maps", "tcp:127.0.0.1:10001"),
    ("sender_canonical_classes", "envelope_sender"),
    ("recipient_canonical_maps", ""),
    ("virtual_alias_maps", ""),
];

/// One service, or more options of the one before.
fn service(cf: &mut String, line: &str, options: &[(&str, &str)]) {
    if !line.is_empty() {
        writeln!(cf, "{line}").expect("a String takes everything");
    }
    for (name, value) in options {
        writeln!(cf, "  -o {name}={value}").expect("a String takes everything");
    }
}
