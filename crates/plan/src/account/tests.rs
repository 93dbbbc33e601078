//! Goldens of what one account runs.

use super::*;
use crate::spec::WebSpec;
use expect_test::expect;
use phalanx_model::{Account, Limits, Site, Uid};
use std::collections::{BTreeMap, BTreeSet};

fn account(processes: u32) -> Account {
    Account {
        name: "alice".parse().expect("a name"),
        uid: Uid::FIRST,
        logical_server: "www".parse().expect("a name"),
        owner: "root".parse().expect("a name"),
        limits: Limits { processes, ..Limits::default() },
        php: Default::default(),
        state: Default::default(),
    }
}

fn site() -> Site {
    Site {
        name: "www.example.org".parse().expect("a host name"),
        aliases: vec!["example.org".parse().expect("a host name")],
        account: "alice".parse().expect("a name"),
        document_root: "sites/www.example.org".parse().expect("a path"),
    }
}

#[test]
fn httpd_conf_of_an_account() {
    expect![[r##"
        # Written by Phalanx. The web server of account alice.
        Include /var/lib/phalanx/live/httpd-common.conf
        StartServers 1
        ServerLimit 3
        ThreadLimit 16
        ThreadsPerChild 16
        MaxRequestWorkers 48
        MinSpareThreads 1
        MaxSpareThreads 17
        ListenCoresBucketsRatio 4096
        Listen 127.64.0.1:808
        ServerName account
        ErrorLog syslog:user:phalanx-site
        ErrorLogFormat "%v [%-m:%l] [pid %P] %E: [client\\ %a] %M"
        <Directory /home/alice>
            AllowOverride All
            Options FollowSymLinks
            Require all granted
            CGIPassAuth On
        </Directory>
        <FilesMatch ".+\\.ph(ar|p|tml)$">
            SetHandler "proxy:unix:/run/phalanx/account/php.sock|fcgi://localhost"
        </FilesMatch>
        <Proxy "unix:/run/phalanx/account/php.sock|fcgi://localhost">
            ProxySet "flushpackets=auto" "retry=0"
        </Proxy>
        # Who asks for a name that is no site of this account any more.
        <VirtualHost *:808>
            ServerName unknown
            Redirect 404 /
        </VirtualHost>
        <VirtualHost *:808>
            ServerName www.example.org
            ServerAlias example.org
            DocumentRoot /home/alice/sites/www.example.org
        </VirtualHost>
    "##]]
    .assert_eq(&httpd_conf(&account(128), &[site()], HTTPD_COMMON));
}

#[test]
fn php_fpm_conf_of_an_account() {
    expect![[r#"
        ; Written by Phalanx. PHP of account alice.

        [global]
        error_log = /proc/self/fd/2
        daemonize = no
        systemd_interval = 0
        process_control_timeout = 8s
        log_level = warning

        [account]
        user = 1900000001
        group = 1900000001
        listen = /run/phalanx/account/php.sock
        listen.backlog = 128
        pm = ondemand
        pm.max_children = 21
        pm.process_idle_timeout = 20s
        pm.max_requests = 2000
        clear_env = yes
        env[HOME] = /home/alice
        env[USER] = "alice"
        env[PATH] = /usr/local/bin:/usr/bin:/bin
        env[TMPDIR] = /home/alice/tmp
        catch_workers_output = yes
        decorate_workers_output = no
        security.limit_extensions = ".php .phar .phtml"
        php_value[log_errors] = 1
        php_value[session.save_path] = /home/alice/sessions
        php_value[session.gc_probability] = 1
        php_value[session.gc_divisor] = 1000
        php_value[upload_tmp_dir] = /home/alice/tmp
        php_value[sys_temp_dir] = /home/alice/tmp
        php_value[memory_limit] = 256M
    "#]]
    .assert_eq(&php_fpm_conf(&account(128)));
}

#[test]
fn the_administrators_directives_come_last() {
    let spec = WebSpec {
        share: None,
        listen: BTreeSet::new(),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::new(),
        balancers: BTreeSet::new(),
        httpd_directives: vec!["Header set X-Host \"ours\"".to_owned()],
        logs: Default::default(),
    };
    let text = httpd_common(&spec);
    assert!(text.ends_with("# The administrator's own, for this cluster.\nHeader set X-Host \"ours\"\n"), "{text}");
}

#[test]
fn accounts_nft_has_the_whole_range() {
    expect![[r#"
        # Written by Phalanx. Keeps accounts apart on the loopback interface. Loading it again keeps the set's elements.
        table inet phalanx_accounts {
            set owners {
                type ipv4_addr . uid
            }
            chain output {
                type filter hook output priority filter; policy accept;
            }
        }
        flush chain inet phalanx_accounts output
        table inet phalanx_accounts {
            chain output {
                ip saddr 127.64.0.0/10 ip saddr . meta skuid != @owners drop
                meta skuid 1900000001-1904194302 tcp flags & (syn | ack) == syn | ack ip saddr . meta skuid != @owners drop
                meta skuid 1900000001-1904194302 tcp flags & (syn | ack) == syn | ack meta nfproto ipv6 drop
                tcp flags & (syn | ack) != syn accept
                ip daddr 127.64.0.0/10 meta skuid { 0, phalanx-proxy } accept
                ip daddr 127.64.0.0/10 ip daddr . meta skuid @owners accept
                ip daddr 127.64.0.0/10 meta l4proto tcp reject with tcp reset
                ip daddr 127.64.0.0/10 drop
                meta skuid 1900000001-1904194302 tcp dport { 341, 342 } reject with tcp reset
                oif lo meta skuid 1900000001-1904194302 th dport 0-1023 accept
                oif lo meta skuid 1900000001-1904194302 meta l4proto tcp reject with tcp reset
                oif lo meta skuid 1900000001-1904194302 drop
            }
        }
    "#]].assert_eq(&accounts_nft());
}

#[test]
fn workers_fit_every_limit_of_processes() {
    for processes in 32..=32_768 {
        let limits = Limits { processes, ..Limits::default() };
        let Workers { httpd_children, httpd_threads, php_children } = Workers::within(&limits);
        let per_child = httpd_threads + HTTPD_THREADS_BESIDE;
        let most = 1 + httpd_children * per_child + 1 + php_children;
        assert!(most <= processes, "{processes}: {httpd_children} {php_children}");
        let changing = 2 * (1 + per_child) + 1 + php_children;
        assert!(changing <= processes, "{processes}: no room for a second httpd, {changing}");
    }
}
