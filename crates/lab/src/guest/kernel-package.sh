# Makes a guest's kernel of Debian's prebuilt User Mode Linux package. Reads the pins from its standard input.
#   $1 work directory (empty)   $2 result directory (exists)   $3 where the result will be used
#
# The package is only in Debian's unstable distribution and wants its libc, which is laid beside it. Its nf_tables
# knows no `ip` and `inet` families, so those few modules are built again from the kernel's source of the same series,
# with the package's own configuration and the families added. The package has no symbol versions: a module fits if
# the series, the configuration and the release's name are the same.
set -eu
work=$1 result=$2 final=$3
pins=$(cat)

# apt with directories of its own: the machine's configuration and state stay as they are, only its mirror is taken.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
    | awk '$1 == "Debian" && $2 == "Debian" && $3 == "main" { print $4; exit }')
[ -n "$mirror" ] || { echo "apt knows no mirror of Debian: run apt-get update, or look at /etc/apt" >&2; exit 1; }
mkdir -p "$work/apt/etc/sources.d" "$work/apt/etc/preferences.d" "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
: >"$work/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/apt/etc/sources.d/sid.list"
unstable() {
    tool=$1; shift
    "$tool" -q -o Dir::Etc="$work/apt/etc" -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/apt/etc/sources.d" \
        -o Dir::State="$work/apt/state" -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}
unstable apt-get update >/dev/null

# fetch PACKAGE: downloads it, holds it against its pin and unpacks it.
fetch() {
    (cd "$work" && unstable apt-get download "$1" >/dev/null)
    deb=$(echo "$work/$1"_*.deb)
    version=$(dpkg-deb -f "$deb" Version)
    pin=$(echo "$pins" | awk -v name="$1" '$1 == name { print $2, $3 }')
    if [ "${pin% *}" != "$version" ]; then
        echo "warning: $1 is $version, tried was ${pin% *}" >&2
    elif [ "${pin#* }" != "$(sha256sum "$deb" | cut -d' ' -f1)" ]; then
        echo "$1 $version is not the file that was tried: its SHA-256 differs from the pin" >&2
        exit 1
    fi
    dpkg-deb -x "$deb" "$work/root"
    rm "$deb"
}
fetch user-mode-linux
fetch libc6

cp "$work/root/usr/bin/linux.uml" "$result/linux"
libraries=$work/root/usr/lib/x86_64-linux-gnu
cp "$libraries/ld-linux-x86-64.so.2" "$libraries/libc.so.6" "$result/"
# lay_libc DIRECTORY: has the kernel take its libc from there.
lay_libc() { patchelf --set-interpreter "$1/ld-linux-x86-64.so.2" --set-rpath "$1" "$result/linux"; }
lay_libc "$result"
release=$("$result/linux" --version)
"$result/linux" --showconfig >"$work/config"
lay_libc "$final"

# The modules that a guest needs, with what they depend on.
prebuilt=$work/root/usr/lib/uml/modules/$release
modules=$result/modules/$release
mkdir -p "$modules"
cp "$prebuilt/modules.order" "$prebuilt/modules.builtin" "$prebuilt/modules.builtin.modinfo" "$modules/"
awk -v wanted="nfsd nfs nfsv3 nfsv4 autofs4 overlay fuse loop veth tun dummy bridge quota_v2 nf_nat nf_conntrack nf_log_syslog \
        nf_reject_ipv4 nf_reject_ipv6 binfmt_misc" '
    BEGIN { split(wanted, names, " "); for (i in names) want[names[i]] }
    {
        path = $1; sub(/:$/, "", path); name = path; sub(/.*\//, "", name); sub(/\.ko.*$/, "", name); gsub(/-/, "_", name)
        if (name in want) { print path; for (i = 2; i <= NF; i++) print $i }
    }' "$prebuilt/modules.dep" | sort -u | (cd "$prebuilt" && xargs cp --parents -t "$modules")
[ -e "$modules/kernel/fs/nfsd/nfsd.ko" ] || { echo "the package has no module nfsd" >&2; exit 1; }

# nf_tables and its expressions, with the families `ip` and `inet`.
series=$(echo "$release" | cut -d. -f1,2)
fetch "linux-source-$series"
tar -xf "$work/root/usr/src/linux-source-$series.tar.xz" -C "$work"
cd "$work/linux-source-$series"
cp "$work/config" .config
./scripts/config --enable NF_TABLES_INET --enable NF_TABLES_IPV4 --enable NF_TABLES_IPV6 --disable LOCALVERSION_AUTO
build() { make ARCH=um KERNELRELEASE="$release" KBUILD_MODPOST_WARN=1 -s -j"$(nproc)" "$@" >>"$work/build.log" 2>&1 \
    || { tail -n 20 "$work/build.log" >&2; exit 1; }; }
build olddefconfig
build modules_prepare
net=net/netfilter
set -- $net/nf_tables.ko $net/nft_ct.ko $net/nft_limit.ko $net/nft_log.ko $net/nft_quota.ko $net/nft_reject.ko $net/nft_reject_inet.ko \
    net/ipv4/netfilter/nft_reject_ipv4.ko net/ipv6/netfilter/nft_reject_ipv6.ko
build "$@"
mkdir -p "$modules/kernel"
cp --parents -t "$modules/kernel" "$@"
echo seccomp=on >"$result/arguments"
echo "Debian's user-mode-linux, Linux $release" >"$result/about"
