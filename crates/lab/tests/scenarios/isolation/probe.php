<?php
// What one account's code can reach: tries everything twice, on what is its own and on what is somebody else's, and reports both.
// {"try": {"own": what was reached of its own by target, or null, "other": the same for what is others'}}
error_reporting(0);
set_exception_handler(fn($error) => print('the probe failed: ' . $error));
set_time_limit(40);
const OWN = ['name' => '@OWN@', 'uid' => @OWN_UID@, 'ip' => '@OWN_IP@'];
const OTHER = ['name' => '@OTHER@', 'uid' => @OTHER_UID@, 'ip' => '@OTHER_IP@', 'pids' => [@OTHER_PIDS@]];
/** The account's own httpd: it has a right more than the code of its sites, to bind the account's port. */
const HTTPDS = [@OWN_HTTPDS@];
const NODE = '@NODE@';
const HERE = __DIR__;
$report = [];

/** Runs `$try` on each of the targets and keeps what it gave, by target. */
function tried(string $name, callable $try, array $own, array $others): void {
    global $report;
    $hit = fn(array $targets) => array_filter(array_map(fn($target) => cut($try($target)), array_combine(array_map('json_encode', $targets), $targets)));
    $report[$name] = ['own' => $hit($own) ?: null, 'other' => $hit($others) ?: null];
}

function cut(mixed $value): ?string {
    return $value === false || $value === null || $value === '' ? null : mb_strcut(mb_convert_encoding((string) $value, 'UTF-8', 'ISO-8859-1'), 0, 200);
}

/** Where the files of an account may be found, by every road that leads there. */
function homes(string $name): array {
    return ["/home/$name", "/srv/phalanx/content/home/$name", "/srv/nas/web/home/$name", '/home/' . OWN['name'] . "/../$name",
        "/proc/self/root/home/$name", "/proc/self/cwd/../../../$name", "/proc/1/root/srv/phalanx/content/home/$name"];
}

$private = fn(string $name) => array_map(fn($home) => "$home/private.txt", homes($name));
$secrets = ['/etc/shadow', '/root/.bashrc', '/var/lib/phalanx/agent/key.pem', '/var/lib/phalanx/agent/spec.json', '/var/lib/phalanx/panel/admin.token',
    '/var/lib/phalanx/directory/directory.sqlite', '/run/phalanx/guard/content.json', '/run/phalanx/proxy/status.json',
    '/var/log/phalanx/access.log', '/srv/phalanx/content/.phalanx-share',
    '/var/lib/phalanx/accounts/' . OTHER['uid'] . '/httpd.conf', '/var/lib/phalanx/accounts/' . OTHER['uid'] . '/php-fpm.conf',
    '/run/phalanx/account/' . OTHER['uid'] . '/php.env', '/run/phalanx/config/../../' . OTHER['uid'] . '/httpd.conf'];
$others = array_merge($private(OTHER['name']), $secrets);

tried('read by path', fn($path) => file_get_contents($path), ['/home/' . OWN['name'] . '/private.txt'], $others);
tried('read by wrapper', fn($path) => file_get_contents("php://filter/read=convert.base64-encode/resource=$path"), [HERE . '/probe.php'], $others);
tried('read by command', fn($path) => shell_exec('cat ' . escapeshellarg($path) . ' 2>/dev/null'), [HERE . '/probe.php'], $others);
tried('list', fn($path) => implode(' ', array_diff(scandir($path) ?: [], ['.', '..'])), ['/home/' . OWN['name']],
    array_merge(homes(OTHER['name']), ['/srv', '/srv/phalanx', '/root', '/var/log', '/run/phalanx/launcher', '/run/phalanx/guard', '/var/lib/phalanx/accounts',
        '/var/lib/phalanx/agent', '/var/lib/phalanx/directory', '/var/lib/phalanx/panel', '/sys', '/sys/fs/cgroup', '/proc/sys', '/proc/1', '/run/systemd/incoming']));

$links = 0;
$link = function (string $target) use (&$links): string {
    $place = HERE . '/link-' . $links++;
    @unlink($place);
    symlink($target, $place);
    return $place;
};
tried('read by symlink', fn($path) => file_get_contents($link($path)), ['/home/' . OWN['name'] . '/private.txt'], $others);
tried('write', fn($path) => file_put_contents($path, 'x') ? $path : null, ['/home/' . OWN['name'] . '/written'],
    array_merge(array_map(fn($home) => "$home/written", homes(OTHER['name'])),
        ['/run/phalanx/config/httpd.conf', '/run/phalanx/account/php.sock', '/run/phalanx/account/php.env', '/run/phalanx/account/new', '/etc/new', '/usr/bin/new',
         '/var/lib/phalanx/live/proxy.json', '/var/lib/phalanx/generations/new', '/home/new', '/new', '/proc/sys/kernel/core_pattern']));

// A symlink that changes while it is looked at.
tried('symlink race', function (string $target) use ($others) {
    [$mine, $place] = ['/home/' . OWN['name'] . '/private.txt', HERE . '/racing'];
    $swap = 'for i in $(seq 100); do ln -sfn ' . escapeshellarg($target) . " $place; ln -sfn $mine $place; done";
    $process = proc_open($swap, [], $pipes);
    $seen = null;
    while (proc_get_status($process)['running']) {
        $text = file_get_contents($place);
        if ($text !== false && !str_contains($text, 'own secret')) { $seen = $text; }
        if (str_contains($text, 'own secret') && $target === $mine) { $seen = $text; }
    }
    return $seen;
}, ['/home/' . OWN['name'] . '/private.txt'], ['/home/' . OTHER['name'] . '/private.txt', '/srv/phalanx/content/home/' . OTHER['name'] . '/private.txt', '/etc/shadow']);

// Sockets.
$sockets = ['/run/phalanx/account/' . OTHER['uid'] . '/php.sock', '/run/phalanx/account/../../' . OTHER['uid'] . '/php.sock', '/run/phalanx/launcher/launcher.sock',
    '/run/systemd/private', '/run/systemd/notify', '/run/systemd/journal/socket', '/run/systemd/journal/stdout', '/run/dbus/system_bus_socket',
    "\0/run/systemd/notify"];
foreach (OTHER['pids'] as $pid) { $sockets[] = "/proc/$pid/root/run/phalanx/account/php.sock"; }
tried('unix socket', fn($path) => (bool) stream_socket_client("unix://$path", $number, $why, 1) || (bool) stream_socket_client("udg://$path", $number, $why, 1) ? 'connected' : null,
    ['/run/phalanx/account/php.sock'], $sockets);
tried('tcp', fn($at) => stream_socket_client("tcp://$at", $number, $why, 1) ? 'connected' : null, [OWN['ip'] . ':@PORT@', NODE . ':80'],
    [OTHER['ip'] . ':@PORT@', '127.0.0.1:3306', '[::1]:3306', NODE . ':3306', NODE . ':341', NODE . ':342']);
tried('udp', function ($at) {
    $socket = stream_socket_client("udp://$at", $number, $why, 1);
    stream_set_timeout($socket, 0, 300000);
    fwrite($socket, "hello\n");
    return fread($socket, 100);
}, ['@RESOLVER@'], ['127.0.0.1:3306', OTHER['ip'] . ':3306']);
tried('bind', fn($at) => stream_socket_server("tcp://$at") ? 'bound' : null, [OWN['ip'] . ':9000'], [OTHER['ip'] . ':@PORT@', '0.0.0.0:@PORT@', OWN['ip'] . ':@PORT@', '0.0.0.0:80']);

// Processes.
$own = getmypid();
tried('signal', fn($pid) => posix_kill($pid, 23) ? 'sent' : null, [$own], array_merge([1], OTHER['pids']));
tried('look at a process', fn($pid) => implode(' ', array_filter(array_map(
    fn($file) => cut(file_get_contents("/proc/$pid/$file") ?: (readlink("/proc/$pid/$file") ?: implode(' ', scandir("/proc/$pid/$file") ?: []))),
    ['cmdline', 'environ', 'maps', 'status', 'cwd', 'root', 'fd', 'mem']))), [$own], array_merge([1], OTHER['pids']));
tried('see processes', fn($mine) => implode(' ', array_filter(scandir('/proc'), fn($pid) => ctype_digit($pid) && (fileowner("/proc/$pid") === OWN['uid']) === $mine)),
    [true], [false]);
tried('memory of a process', fn($pid) => fopen("/proc/$pid/mem", 'r+') ? 'opened' : null, [$own], HTTPDS);

// Who talks to whom on this machine.
$tables = array_map('basename', glob('/proc/self/net/*'));
tried('socket tables', fn($path) => file_get_contents($path), ['/proc/self/limits'],
    array_merge(array_map(fn($table) => "/proc/self/net/$table", $tables), ["/proc/$own/task/$own/net/tcp", '/proc/thread-self/net/unix', '/proc/net/tcp']));
$report['socket tables']['own'] = in_array('tcp', $tables) ? $report['socket tables']['own'] : null;

// Memory that is shared. The neighbour has made its own under the same names, for everybody.
tried('shared memory', fn($key) => ($shm = shmop_open($key, $key === 0x5051 ? 'c' : 'w', 0600, $key === 0x5051 ? 64 : 0)) ? 'size ' . shmop_size($shm) : null, [0x5051], [0x5050]);
tried('message queue', fn($key) => $key === 0x5051 ? (msg_get_queue($key) ? 'made' : null) : (msg_queue_exists($key) ? 'exists' : null), [0x5051], [0x5050]);
file_put_contents('/tmp/mine', 'mine');
tried('temporary files', fn($path) => file_get_contents($path), ['/tmp/mine', '/dev/shm/mine', '/var/tmp/mine'], ['/tmp/neighbour', '/dev/shm/neighbour', '/var/tmp/neighbour']);

// Privileges and doors of the kernel, by other programs.
$perl = fn(string $code) => 'perl -e ' . escapeshellarg($code);
$call = fn(string $call) => $perl("\$r = syscall($call); print 'done' if \$r >= 0 && \$r != -1");
tried('command', fn($line) => shell_exec("$line 2>/dev/null"), ['id -u', $call('39')], [
    'unshare --user --map-root-user id', 'unshare --mount id', 'nsenter --target 1 --all id', 'mount -t tmpfs none /tmp && echo mounted', 'setpriv --reuid 0 id',
    'setpriv --reuid ' . OTHER['uid'] . ' id', 'su -c id', 'chroot / id', 'mknod /tmp/disk b 8 0 && echo made', 'cp /bin/sh /tmp/sh && chmod 4755 /tmp/sh && echo set',
    'nft list ruleset', 'systemctl list-units', 'loginctl', 'dmesg', 'crontab -l',
    $call('101, 16, ' . HTTPDS[0] . ', 0, 0'), $call('250, 0, 0'), $call('321, 0, 0, 0'), $call('425, 1, 0'), $call('323, 0'), $call('298, 0, 0, 0, 0, 0'),
    $call('272, 0x10000000'), $call('248, 0, 0, 0, 0, 0'), $perl('socket(S, 16, 3, 0) and print "netlink"'), $perl('socket(S, 17, 3, 768) and print "packet"'),
    $perl('socket(S, 2, 3, 1) and print "raw"'), $perl('socket(S, 40, 1, 0) and print "vsock"'),
]);

header('Content-Type: application/json');
echo json_encode($report, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR);
