<?php
// The careless neighbour: leaves things where everybody may read them, and says what they are.
$key = 0x5050;
$shm = shmop_open($key, 'c', 0666, 64);
shmop_write($shm, str_pad('@SECRET@', 64), 0);
$queue = msg_get_queue($key, 0666);
if (msg_stat_queue($queue)['msg_qnum'] === 0) {
    msg_send($queue, 1, '@SECRET@', false);
}
foreach (['/dev/shm/neighbour', '/tmp/neighbour', '/var/tmp/neighbour'] as $path) {
    file_put_contents($path, '@SECRET@');
    chmod($path, 0666);
}
echo 'RAN-AS ', posix_getuid();
