#!/bin/sh
# Makes a fresh root file system (the only argument) a neutral machine: nothing starts that a host was not told to start.
# Runs on the machine that builds the image; all changes go through chroot, so that no absolute symlink is followed out of it.
set -eu
root=$1

# Services that packages switch on by themselves. They stay usable: whoever wants one enables it.
chroot "$root" systemctl --quiet disable \
    apache2.service dovecot.service dovecot.socket haproxy.service nfs-blkmap.service nfs-client.target nfs-server.service nginx.service \
    postfix.service postsrsd.service redis-server.service rspamd.service remote-fs.target rpcbind.service rpcbind.socket systemd-pstore.service
for unit in "$root"/lib/systemd/system/php*-fpm.service; do
    chroot "$root" systemctl --quiet disable "$(basename "$unit")"
done

# What has no sense without a console, a disk or a way to the package archive.
chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    phpsessionclean.timer getty.target console-getty.service systemd-udevd.service systemd-networkd.service \
    systemd-networkd.socket systemd-timesyncd.service

# An empty machine-id (not a missing one) lets each host get its own without a "first boot" that enables every unit.
chroot "$root" sh -c ': > /etc/machine-id; mkdir -p /var/log/journal /srv/nas; rm -f /etc/hostname /etc/resolv.conf'
