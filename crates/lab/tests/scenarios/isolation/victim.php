<?php
// The careless neighbour: leaves things where everybody may read them, and says what they are. With ?look=WHAT it says what it sees there
// itself: "shared memory", "message queue", or the path of a file.
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
switch ($_GET['look'] ?? '') {
    case '':
        exit('RAN-AS ' . posix_getuid());
    case 'shared memory':
        exit(shmop_read(shmop_open($key, 'a', 0, 0), 0, 64));
    case 'message queue':
        msg_receive($queue, 1, $type, 64, $message, false, MSG_IPC_NOWAIT);
        exit($message);
    default:
        exit(file_get_contents($_GET['look']));
}
