# Builds a guest's kernel from Debian 12's own source package. Reads the configuration's fragment from its standard input.
#   $1 work directory (empty)   $2 result directory (exists)
#
# User Mode Linux 6.1 keeps a place for the processor's floating-point state that is too small for today's processors;
# it is made larger, and with it the kernel's stacks, where that state lies. All is built in, there are no modules.
set -eu
work=$1 result=$2
cat >"$work/fragment"
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download linux-source-6.1 >/dev/null)
dpkg-deb -x "$work"/linux-source-6.1_*.deb "$work/root"
tar -xf "$work/root/usr/src/linux-source-6.1.tar.xz" -C "$work"
cd "$work/linux-source-6.1"
sed -i 's/DEFINE_LONGS(HOST_FP_SIZE, 2696)/DEFINE_LONGS(HOST_FP_SIZE, 12288)/' arch/x86/um/user-offsets.c
grep -q 'HOST_FP_SIZE, 12288' arch/x86/um/user-offsets.c || { echo "HOST_FP_SIZE is no longer where it was" >&2; exit 1; }
build() { "$@" >>"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }; }
build make ARCH=um -s defconfig
build ./scripts/kconfig/merge_config.sh -m .config "$work/fragment"
build make ARCH=um -s olddefconfig
build make ARCH=um -s -j"$(nproc)" linux
strip -o "$result/linux" linux
mkdir -p "$result/modules"
: >"$result/arguments"
echo "built from Debian's linux-source-6.1, Linux $("$result/linux" --version)" >"$result/about"
