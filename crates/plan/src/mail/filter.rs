//! Rspamd, which signs, judges and delays mail on every node, and the Redis on the master in which the nodes share what they learn.
//!
//! Rspamd reads Debian's own configuration and these files in place of its `local.d` (its manual, "Writing configuration"). Mail never
//! waits for it: without Redis it knows less, and without Rspamd Postfix goes on.

use super::lookup::KEYS;
use super::{LOGS, port};
use crate::render::Files;
use crate::spec::NodeSpec;
use crate::spec::mail::MailSpec;
use phalanx_model::cluster::Role;

/// The directory below the live generation that takes the place of Rspamd's own local configuration.
pub const DIRECTORY: &str = "rspamd";
/// Redis' configuration, on the master alone. It holds a password, so its name makes it a secret.
pub const MEMORY_FILE: &str = "secret-redis.conf";
/// postsrsd's secret: all nodes rewrite, and read back, the same.
pub const SRS_FILE: &str = "secret-srs";

/// What postsrsd is told besides: the environment of its unit.
pub const SENDERS_FILE: &str = "senders.env";

/// The domain whose key signs a message, in Lua.
const MAY_SIGN: &str = include_str!("may_sign.lua");
/// What is refused for its header, in Lua.
const HEADER: &str = include_str!("header.lua");

/// What the password of Redis is for.
const MEMORY_USE: &str = "redis";
/// What postsrsd's secret is for.
const SRS_USE: &str = "srs";

/// The files.
pub fn files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    let password = mail.secrets.for_use(MEMORY_USE);
    let file =
        |name: &str, text: String| (format!("{DIRECTORY}/local.d/{name}"), format!("# Written by phalanx.\n{text}"));
    let mut files = Files::from([
        file("logging.inc", format!("type = \"file\";\nfilename = \"{LOGS}/rspamd/rspamd.log\";\nlevel = \"info\";\n")),
        file("worker-normal.inc", "enabled = false;\n".to_owned()),
        file("worker-fuzzy.inc", "enabled = false;\n".to_owned()),
        file("worker-controller.inc", format!("bind_socket = \"127.0.0.1:{}\";\ncount = 1;\n", port::FILTER_CONTROL)),
        file(
            "worker-proxy.inc",
            format!(
                "bind_socket = \"127.0.0.1:{}\";\nmilter = yes;\ntimeout = 30s;\ncount = 1;\nupstream \"local\" {{\n  default = yes;\n  self_scan = yes;\n}}\n",
                port::FILTER
            ),
        ),
        file("options.inc", "dns {\n  timeout = 1s;\n  retransmits = 2;\n}\n".to_owned()),
        (
            format!("{DIRECTORY}/local.d/secret-redis.conf"),
            format!("# Written by phalanx.\nservers = \"{}:{}\";\npassword = \"{password}\";\ntimeout = 1s;\n", mail.master, port::FILTER_MEMORY),
        ),
        file("redis.conf", ".include \"$LOCAL_CONFDIR/local.d/secret-redis.conf\"\n".to_owned()),
        file("classifier-bayes.conf", "backend = \"redis\";\nautolearn = true;\n".to_owned()),
        file("greylist.conf", "enabled = true;\ntimeout = 5min;\nmessage = \"Try again later\";\n".to_owned()),
        file("dkim_signing.conf", signing()),
        // What it found of the sender goes into the letter (RFC 8601), and what others wrote there in its name does not. Not into what leaves.
        file("milter_headers.conf", "use = [\"authentication-results\"];\nskip_authenticated = true;\nskip_local = true;\n".to_owned()),
        file("ratelimit.conf", "rates {\n  user = {\n    selector = \"user.lower\";\n    bucket = {\n      burst = 200;\n      rate = \"200 / 1h\";\n    }\n  }\n}\n".to_owned()),
        (format!("{DIRECTORY}/rspamd.local.lua"), HEADER.to_owned()),
        (SRS_FILE.to_owned(), format!("{}\n", mail.secrets.for_use(SRS_USE))),
        (SENDERS_FILE.to_owned(), format!("SRS_DOMAIN={}\n", mail.host_name)),
    ]);
    if spec.role == Role::Master {
        files.insert(MEMORY_FILE.to_owned(), memory(spec, &password));
    }
    files
}

/// Who may have mail signed: see `may_sign.lua`. Where it names no domain, nothing is signed.
fn signing() -> String {
    format!(
        "enabled = true;\npath = \"{KEYS}/$domain.$selector.key\";\nselector = \"phalanx\";\nsign_authenticated = true;\nsign_local = true;\nuse_esld = false;\nallow_username_mismatch = true;\nallow_hdrfrom_mismatch = false;\nuse_domain_custom = <<EOD\n{MAY_SIGN}EOD\n"
    )
}

fn memory(spec: &NodeSpec, password: &str) -> String {
    format!(
        "# Written by phalanx.\nbind {}\nport {}\nprotected-mode yes\nrequirepass {password}\ndaemonize no\ndir /var/lib/phalanx/filter-memory\nsave 300 100\nappendonly no\nmaxmemory 256mb\nmaxmemory-policy volatile-ttl\nlogfile \"\"\n",
        spec.address.ip,
        port::FILTER_MEMORY
    )
}
