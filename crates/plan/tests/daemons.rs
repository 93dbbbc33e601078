//! What is rendered for accounts, read by the daemons themselves: httpd, php-fpm and nft accept it, and refuse what is broken, so
//! that their word means something. A daemon that is not installed is a failure.

use phalanx_model::{Account, Limits, Site, Uid};
use phalanx_plan::account;
use phalanx_plan::spec::WebSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn account(limits: Limits) -> Account {
    Account {
        name: "alice".parse().expect("a name"),
        uid: Uid::FIRST,
        logical_server: "www".parse().expect("a name"),
        owner: "root".parse().expect("a name"),
        limits,
        php: Default::default(),
        state: Default::default(),
    }
}

fn web(httpd_directives: &[&str]) -> WebSpec {
    WebSpec {
        share: None,
        listen: BTreeSet::new(),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::new(),
        balancers: BTreeSet::new(),
        httpd_directives: httpd_directives.iter().map(|line| (*line).to_owned()).collect(),
        logs: Default::default(),
    }
}

fn sites(count: usize) -> Vec<Site> {
    let site = |n: usize| Site {
        name: format!("www{n}.example.org").parse().expect("a host name"),
        aliases: vec![format!("alias{n}.example.org").parse().expect("a host name")],
        account: "alice".parse().expect("a name"),
        document_root: format!("sites/www{n}.example.org/public_html").parse().expect("a path"),
    };
    (0..count).map(site).collect()
}

/// Writes both of httpd's files and asks httpd; its words are the error.
fn httpd_says(common: &str, edit: impl FnOnce(String) -> String, sites: &[Site]) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let (common_path, path) = (directory.path().join("httpd-common.conf"), directory.path().join("httpd.conf"));
    std::fs::write(&common_path, common).expect("written");
    let text = account::httpd_conf(&account(Limits::default()), sites, &common_path.to_string_lossy());
    std::fs::write(&path, edit(text)).expect("written");
    says("/usr/sbin/apache2", &["-t", "-f"], &path)
}

fn says(program: &str, args: &[&str], file: &Path) -> Result<(), String> {
    let output = Command::new(program).args(args).arg(file).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(words) }
}

#[test]
fn httpd_accepts_an_account() {
    let common = account::httpd_common(&web(&["Header set X-Served-By \"phalanx\""]));
    httpd_says(&common, |text| text, &[]).expect("no site");
    httpd_says(&common, |text| text, &sites(50)).expect("fifty sites");
}

#[test]
fn httpd_refuses_what_an_administrator_got_wrong_and_says_where() {
    let common = account::httpd_common(&web(&["NoSuchDirective on"]));
    let words = httpd_says(&common, |text| text, &sites(1)).expect_err("unknown directive");
    assert!(words.contains("httpd-common.conf") && words.contains("NoSuchDirective"), "{words}");
    let common = account::httpd_common(&web(&["<Directory /x>"]));
    httpd_says(&common, |text| text, &sites(1)).expect_err("a section that does not end");
}

#[test]
fn httpd_refuses_a_broken_account() {
    let common = account::httpd_common(&web(&[]));
    let broken = |text: String| text.replace("</VirtualHost>", "");
    httpd_says(&common, broken, &sites(1)).expect_err("sections that do not end");
}

fn php_fpm_says(edit: impl FnOnce(String) -> String) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("php-fpm.conf");
    std::fs::write(&path, edit(account::php_fpm_conf(&account(Limits::default())))).expect("written");
    says("/usr/sbin/php-fpm8.2", &["-t", "--fpm-config"], &path)
}

#[test]
fn php_fpm_accepts_an_account_and_refuses_a_broken_one() {
    php_fpm_says(|text| text).expect("as rendered");
    let words = php_fpm_says(|text| text.replace("ondemand", "sometimes")).expect_err("an unknown manager");
    assert!(words.contains("sometimes") || words.contains("php-fpm.conf"), "{words}");
    php_fpm_says(|text| text.replace("pm.max_children = ", "pm.max_children = -")).expect_err("no workers");
}
