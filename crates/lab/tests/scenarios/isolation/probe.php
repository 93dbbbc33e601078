<?php
// What one account's code can reach: tries everything twice, on what is its own and on what is somebody else's, and reports what it got of each.
// {"try": {"own": {target: what was reached, or null}, "other": the same}}. The targets are the scenario's: {"try": {"own": [...], "other": [...]}}.
error_reporting(0);
set_exception_handler(fn($error) => print('the probe failed: ' . $error));
set_time_limit(40);
const HERE = __DIR__;
$targets = json_decode(<<<'TARGETS'
@TARGETS@
TARGETS, true, 8, JSON_THROW_ON_ERROR);
$report = [];

/** Runs `$try` on each of its targets and keeps what it gave, by target. */
function tried(string $name, callable $try): void {
    global $report, $targets;
    foreach (['own', 'other'] as $whose) {
        foreach ($targets[$name][$whose] as $target) { $report[$name][$whose][$target] = cut($try($target)); }
    }
    unset($targets[$name]);
}

function cut(mixed $value): ?string {
    return $value === false || $value === null || $value === '' ? null : mb_strcut(mb_convert_encoding((string) $value, 'UTF-8', 'ISO-8859-1'), 0, 200);
}

file_put_contents('/tmp/mine', 'mine');
tried('read by path', fn($path) => file_get_contents($path));
tried('read by wrapper', fn($path) => file_get_contents("php://filter/read=convert.base64-encode/resource=$path"));
tried('read by command', fn($path) => shell_exec('cat ' . escapeshellarg($path) . ' 2>/dev/null'));
tried('list', fn($path) => implode(' ', array_diff(scandir($path) ?: [], ['.', '..'])));
// PHP reads links by itself, those of /proc among them, where another program lets the kernel follow them.
tried('list by command', fn($path) => shell_exec('ls -A ' . escapeshellarg("$path/") . ' 2>/dev/null'));
tried('see', fn($path) => filetype($path));

$links = 0;
tried('read by symlink', function (string $target) use (&$links) {
    $place = HERE . '/link-' . $links++;
    unlink($place);
    symlink($target, $place);
    return file_get_contents($place);
});
tried('write', fn($path) => file_put_contents($path, 'x') ? 'written' : null);
tried('write by command', fn($path) => shell_exec('exec 2>/dev/null; printf x >> ' . escapeshellarg($path) . ' && echo written'));

// A symlink that changes between a page of ours and the target while it is looked at.
tried('symlink race', function (string $target) use (&$links) {
    [$mine, $place] = [HERE . '/index.html', HERE . '/racing-' . $links++];
    $swap = 'for i in $(seq 100); do ln -sfn ' . escapeshellarg($target) . " $place; ln -sfn $mine $place; done";
    $process = proc_open($swap, [], $pipes);
    [$page, $seen] = [file_get_contents($mine), null];
    while (proc_get_status($process)['running']) {
        $text = file_get_contents($place);
        if ($text !== false && $text !== $page) { $seen = $text; }
    }
    return $seen;
});

// Sockets. A pair of them needs no name.
tried('unix socket', fn($path) => $path === 'a pair' ? (stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0) ? 'made' : null)
    : (stream_socket_client("unix://$path", $number, $why, 1) || stream_socket_client("udg://$path", $number, $why, 1) ? 'connected' : null));
tried('tcp', fn($at) => stream_socket_client("tcp://$at", $number, $why, 1) ? 'connected' : null);
tried('udp', function ($at) {
    $socket = stream_socket_client("udp://$at", $number, $why, 1);
    stream_set_timeout($socket, 0, 300000);
    fwrite($socket, "from the probe\n");
    return fread($socket, 100);
});
tried('bind', fn($at) => stream_socket_server("tcp://$at") ? 'bound' : null);

// Processes.
tried('signal', fn($pid) => posix_kill((int) $pid, 23) ? 'sent' : null);
tried('see a process', fn($pid) => in_array($pid, scandir('/proc')) || file_exists("/proc/$pid/status") ? 'seen' : null);
tried('look at a process', fn($pid) => implode(' ', array_filter(array_map(
    fn($file) => cut(file_get_contents("/proc/$pid/$file") ?: (readlink("/proc/$pid/$file") ?: implode(' ', scandir("/proc/$pid/$file") ?: []))),
    ['cmdline', 'environ', 'maps', 'status', 'cwd', 'root', 'fd']))));
tried('memory of a process', fn($pid) => fopen("/proc/$pid/mem", 'r+') ? 'opened' : null);

// Memory that is shared. The neighbour has made its own under another key, for everybody.
const OWN_KEY = 0x5051;
shmop_open(OWN_KEY, 'c', 0600, 64);
msg_get_queue(OWN_KEY);
tried('shared memory', fn($key) => ($shm = shmop_open((int) $key, 'w', 0, 0)) ? 'size ' . shmop_size($shm) : null);
tried('message queue', fn($key) => msg_queue_exists((int) $key) ? 'exists' : null);

// Privileges and doors of the kernel, by other programs.
tried('command', fn($line) => shell_exec("exec 2>/dev/null; $line"));

foreach ($targets as $name => $unused) { $report["no such try: $name"] = ['own' => ['' => null], 'other' => []]; }
header('Content-Type: application/json');
echo json_encode($report, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR);
