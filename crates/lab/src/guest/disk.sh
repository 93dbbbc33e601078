# Makes a guest's root image. Runs in a mount namespace of its own, so its mounts end with it.
#   $1 work directory (empty)   $2 the layers of its root file system, as overlayfs wants them (left as they are)
#   $3 the kernel's modules (a tree)   $4 the image to write
set -eu
work=$1 layers=$2 modules=$3 image=$4
mkdir "$work/upper" "$work/overlay" "$work/root"
root=$work/root
mount -t overlay guest -o "lowerdir=$layers,upperdir=$work/upper,workdir=$work/overlay" "$root"
for release in "$modules"/*; do
    [ -d "$release" ] || continue
    mkdir -p "$root/usr/lib/modules"
    cp -a "$release" "$root/usr/lib/modules/"
    chroot "$root" depmod "${release##*/}"
done
# Unlike the lab's other hosts, guests have disks of their own, and /etc/fstab waits for udev to name them.
chroot "$root" systemctl --quiet unmask systemd-udevd.service
# Each guest gets an identity of its own at its first boot.
: >"$root/etc/machine-id"
mkfs.ext4 -q -F -L guest -d "$root" "$image" 3G
