"""Says which mailboxes are open on this host, until it is ended: each 30 ms a look, and a line "MILLISECONDS MAILBOX" for each that is.

It looks at the files that Dovecot's processes have open below the directory of mail. The mailbox "*" stands for any process of the unit that
opens mailboxes, whether it has one open or not. The clock is CLOCK_BOOTTIME, which all hosts of a lab share.
"""
import os
import sys
import time

MAIL = "/srv/phalanx/letters/mail/"


def openers():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if not os.readlink(f"/proc/{pid}/exe").startswith(("/usr/lib/dovecot/", "/usr/sbin/dovecot", "/usr/bin/doveadm")):
                continue
            with open(f"/proc/{pid}/cgroup") as file:
                group = file.read()
            if "phalanx-logins" in group:
                continue
            # An agent ends sessions by doveadm(1), which opens no mailbox; what any of them has open is looked at all the same.
            if "phalanx-mailboxes" in group:
                yield "*"
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                if path.startswith(MAIL):
                    yield "/".join(path[len(MAIL):].split("/")[:2])
        except OSError:
            pass


while True:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    for mailbox in sorted(set(openers())):
        print(now, mailbox)
    sys.stdout.flush()
    time.sleep(0.03)
