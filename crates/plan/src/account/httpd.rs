//! Apache httpd: what all accounts share, and what one account adds.

use super::{PHP_SOCKET, Workers, home};
use crate::directive::HttpdWriter;
use crate::logs::errors;
use crate::spec::WebSpec;
use phalanx_model::account::ACCOUNT_PORT;
use phalanx_model::{Account, Site};
use std::fmt::Display;

/// Debian's directory of httpd's modules.
const MODULES: &str = "/usr/lib/apache2/modules";

/// The modules that every account has: what hosted `.htaccess` files usually need. Those that talk to other machines or run
/// programs by themselves (`proxy_http`, `cgi`, `include`) are left out, and so are those that no `.htaccess` file can use
/// (`allowmethods`, `request`, `unique_id`) or that few would miss: each costs every start and every account that is awake. `mime_magic`
/// alone takes a tenth of an httpd's memory, and guesses types from what uploaded files begin with.
const MODULE_NAMES: [&str; 30] = [
    "mpm_event",
    "authn_core",
    "authn_file",
    "authz_core",
    "authz_host",
    "authz_user",
    "authz_groupfile",
    "access_compat",
    "auth_basic",
    "auth_digest",
    "actions",
    "alias",
    "asis",
    "autoindex",
    "brotli",
    "deflate",
    "dir",
    "env",
    "expires",
    "filter",
    "headers",
    "mime",
    "negotiation",
    "proxy",
    "proxy_fcgi",
    "remoteip",
    "rewrite",
    "setenvif",
    "speling",
    "substitute",
];

/// What is compressed on the way out.
const COMPRESSED_TYPES: [&str; 10] = [
    "text/html",
    "text/plain",
    "text/css",
    "text/xml",
    "text/javascript",
    "application/javascript",
    "application/json",
    "application/xml",
    "application/rss+xml",
    "image/svg+xml",
];

/// `httpd-common.conf`: what every account's httpd includes. `spec`'s own directives come last; they count for all virtual hosts.
pub fn httpd_common(spec: &WebSpec) -> String {
    let mut w = HttpdWriter::new("Written by Phalanx. What the httpd of every account includes.");
    w.directive("ServerRoot", &[&"/etc/apache2"]);
    for module in MODULE_NAMES {
        w.directive("LoadModule", &[&format!("{module}_module"), &format!("{MODULES}/mod_{module}.so")]);
    }
    w.comment("Each httpd has a /tmp of its own.");
    w.directive("DefaultRuntimeDir", &[&"/tmp"]);
    w.directive("PidFile", &[&"/tmp/httpd.pid"]);
    w.directive("Mutex", &[&"pthread"]);
    w.directive("AcceptFilter", &[&"http", &"none"]);
    connections(&mut w);
    w.comment("Files lie on storage that other nodes write to as well: no mapping of what may shrink.");
    w.directive("EnableMMAP", &[&"Off"]);
    w.directive("EnableSendfile", &[&"Off"]);
    w.directive("ServerTokens", &[&"Prod"]);
    w.directive("ServerSignature", &[&"Off"]);
    w.directive("TraceEnable", &[&"Off"]);
    w.directive("UseCanonicalName", &[&"Off"]);
    w.directive("LogLevel", &[&"warn"]);
    content(&mut w);
    w.comment("The client's address and scheme as phalanx-proxy tells them. No one else can connect here.");
    w.directive("RemoteIPHeader", &[&"X-Forwarded-For"]);
    w.directive("RemoteIPInternalProxy", &[&"127.0.0.1"]);
    w.directive("SetEnvIf", &[&"X-Forwarded-Proto", &"^https$", &"HTTPS=on"]);
    w.section("Directory", &[&"/"], |w| {
        w.directive("AllowOverride", &[&"None"]);
        w.directive("Require", &[&"all", &"denied"]);
    });
    w.section("FilesMatch", &[&r"^\.ht"], |w| w.directive("Require", &[&"all", &"denied"]));
    if !spec.httpd_directives.is_empty() {
        w.comment("The administrator's own, for this cluster.");
        w.verbatim(&spec.httpd_directives);
    }
    w.finish()
}

/// phalanx-proxy keeps connections for a while and sends many requests on each.
fn connections(w: &mut HttpdWriter) {
    w.directive("Timeout", &[&60]);
    w.directive("ProxyTimeout", &[&300]);
    w.directive("KeepAlive", &[&"On"]);
    w.directive("KeepAliveTimeout", &[&65]);
    w.directive("MaxKeepAliveRequests", &[&0]);
    w.directive("GracefulShutdownTimeout", &[&8]);
}

fn content(w: &mut HttpdWriter) {
    w.directive("TypesConfig", &[&"/etc/mime.types"]);
    w.directive("AddDefaultCharset", &[&"Off"]);
    w.directive("AddType", &[&"text/javascript", &".mjs"]);
    w.directive("DirectoryIndex", &[&"index.php", &"index.html", &"index.htm"]);
    w.directive("IndexOptions", &[&"FancyIndexing", &"HTMLTable", &"NameWidth=*", &"Charset=UTF-8"]);
    let types: Vec<&dyn Display> =
        std::iter::once(&"DEFLATE" as &dyn Display).chain(COMPRESSED_TYPES.iter().map(|t| t as &dyn Display)).collect();
    w.directive("AddOutputFilterByType", &types);
}

/// One account's `httpd.conf`. `common` is the path of the shared part: [`super::HTTPD_COMMON`], or a staged one that is to be checked.
///
/// Errors go to the machine's journal, each with its site's name, and from there into the site's own log: see [`crate::logs::errors`].
pub fn httpd_conf(account: &Account, sites: &[Site], common: &str) -> String {
    let home = home(&account.name);
    let mut w = HttpdWriter::new(&format!("Written by Phalanx. The web server of account {}.", account.name));
    w.directive("Include", &[&common]);
    workers(&mut w, account);
    // Any value makes httpd open its socket with SO_REUSEPORT, so that its successor can listen before it ends; one above the number of
    // cores keeps it at one socket.
    w.directive("ListenCoresBucketsRatio", &[&4096]);
    w.directive("Listen", &[&format!("{}:{ACCOUNT_PORT}", account.uid.loopback())]);
    // Names of one label: no site can have them.
    w.directive("ServerName", &[&"account"]);
    w.directive("ErrorLog", &[&format!("syslog:user:{}", errors::IDENTIFIER)]);
    w.directive("ErrorLogFormat", &[&errors::FORMAT]);
    w.section("Directory", &[&home], |w| {
        w.directive("AllowOverride", &[&"All"]);
        w.directive("Options", &[&"FollowSymLinks"]);
        w.directive("Require", &[&"all", &"granted"]);
        w.directive("CGIPassAuth", &[&"On"]);
    });
    w.section("FilesMatch", &[&r".+\.ph(ar|p|tml)$"], |w| {
        w.directive("SetHandler", &[&format!("proxy:unix:{PHP_SOCKET}|fcgi://localhost")]);
    });
    w.section("Proxy", &[&format!("unix:{PHP_SOCKET}|fcgi://localhost")], |w| {
        w.directive("ProxySet", &[&"flushpackets=auto", &"retry=0"]);
    });
    let any = format!("*:{ACCOUNT_PORT}");
    w.comment("Who asks for a name that is no site of this account any more.");
    w.section("VirtualHost", &[&any], |w| {
        w.directive("ServerName", &[&"unknown"]);
        w.directive("Redirect", &[&404, &"/"]);
    });
    for site in sites {
        w.section("VirtualHost", &[&any], |w| virtual_host(w, &home, site));
    }
    w.finish()
}

fn workers(w: &mut HttpdWriter, account: &Account) {
    let Workers { httpd_children, httpd_threads, php_children: _ } = Workers::within(&account.limits);
    w.directive("StartServers", &[&1]);
    w.directive("ServerLimit", &[&httpd_children]);
    w.directive("ThreadLimit", &[&httpd_threads]);
    w.directive("ThreadsPerChild", &[&httpd_threads]);
    w.directive("MaxRequestWorkers", &[&(httpd_children * httpd_threads)]);
    w.directive("MinSpareThreads", &[&1]);
    w.directive("MaxSpareThreads", &[&(httpd_threads + 1)]);
}

fn virtual_host(w: &mut HttpdWriter, home: &str, site: &Site) {
    w.directive("ServerName", &[&site.name]);
    for alias in &site.aliases {
        w.directive("ServerAlias", &[alias]);
    }
    w.directive("DocumentRoot", &[&format!("{home}/{}", site.document_root)]);
}
