//! PHP-FPM: one pool for one account.

use super::{PHP_SOCKET, Workers, home};
use crate::directive::IniWriter;
use phalanx_model::Account;

/// One account's `php-fpm.conf`.
///
/// systemd makes the socket and hands it over (`FPM_SOCKETS` in `phalanx-php@.service`), so that FPM starts with the first request. Its
/// own log goes to standard error, which the unit appends to the account's `logs/php.log`: a path in the home would make the
/// checker fail outside the account's file system. What a site's programs log goes to httpd with the request. Values that a site's own `.user.ini` or `ini_set` may change are `php_value`.
pub fn php_fpm_conf(account: &Account) -> String {
    let home = home(&account.name);
    let Workers { php_children, .. } = Workers::within(&account.limits);
    let mut w = IniWriter::new(&format!("Written by Phalanx. PHP of account {}.", account.name));
    w.section("global");
    w.value("error_log", &"/proc/self/fd/2");
    w.value("daemonize", &"no");
    w.value("systemd_interval", &0);
    w.value("process_control_timeout", &"8s");
    w.value("log_level", &"warning");
    w.section("account");
    // Wanted by FPM's checker, which runs as root; ignored where FPM runs, as the account already.
    w.value("user", &account.uid);
    w.value("group", &account.uid);
    w.value("listen", &PHP_SOCKET);
    w.value("listen.backlog", &128);
    w.value("pm", &"ondemand");
    w.value("pm.max_children", &php_children);
    w.value("pm.process_idle_timeout", &"20s");
    w.value("pm.max_requests", &2_000);
    w.value("clear_env", &"yes");
    w.value("env[HOME]", &home);
    w.word("env[USER]", &account.name);
    w.value("env[PATH]", &"/usr/local/bin:/usr/bin:/bin");
    w.value("env[TMPDIR]", &format!("{home}/tmp"));
    w.value("catch_workers_output", &"yes");
    w.value("decorate_workers_output", &"no");
    w.value("security.limit_extensions", &".php .phar .phtml");
    w.value("php_value[log_errors]", &1);
    w.value("php_value[session.save_path]", &format!("{home}/sessions"));
    w.value("php_value[session.gc_probability]", &1);
    w.value("php_value[session.gc_divisor]", &1_000);
    w.value("php_value[upload_tmp_dir]", &format!("{home}/tmp"));
    w.value("php_value[sys_temp_dir]", &format!("{home}/tmp"));
    w.value("php_value[memory_limit]", &format!("{}M", (account.limits.memory_mib / 2).clamp(32, 256)));
    w.finish()
}
