#!/bin/sh
# Lays a second version of PHP into a fresh root file system: second-php.sh ROOT TREE, where TREE holds its unpacked packages of a newer
# Debian. ROOT then has /usr/sbin/php-fpmX.Y, /usr/bin/phpX.Y and /etc/php/X.Y, as the packages of a PHP built for it would give it.
#
# The programs bring their own libraries and loader, in /opt/phpX.Y: nothing of ROOT's is replaced, and nothing else uses them.
set -eu
root=$1 tree=$2

version=$(basename "$(echo "$tree"/usr/sbin/php-fpm*)")
version=${version#php-fpm}
own=/opt/php$version
loader=$own/lib/$(basename "$(patchelf --print-interpreter "$tree/usr/sbin/php-fpm$version")")
mkdir -p "$root$own/bin" "$root$own/lib" "$root/etc/php/$version"

cp -a "$tree"/usr/lib/*-linux-gnu*/*.so* "$root$own/lib/"
for program in "$tree/usr/sbin/php-fpm$version" "$tree/usr/bin/php$version"; do
    place=${program#"$tree"}
    cp "$program" "$root$own/bin/"
    # An RPATH, not a RUNPATH: it counts for the libraries' own needs and for modules that are loaded later, too.
    patchelf --force-rpath --set-rpath "$own/lib" --set-interpreter "$loader" "$root$own/bin/$(basename "$program")"
    ln -s "$own/bin/$(basename "$program")" "$root$place"
done

# Modules where PHP looks for them; each version has a directory of its own, named after its interface.
for modules in "$tree"/usr/lib/php/20*; do cp -a "$modules" "$root/usr/lib/php/"; done

# What the packages' scripts would make: the settings, and for fpm and cli a link to those of each module.
cp -a "$tree/etc/php/$version/." "$root/etc/php/$version"
mkdir -p "$root/etc/php/$version/mods-available"
for settings in "$tree/usr/share/php$version"-*/*/*.ini; do
    cp "$settings" "$root/etc/php/$version/mods-available/"
    module=$(basename "$settings" .ini)
    order=$(sed -n 's/^; *priority=//p' "$settings")
    for use in fpm cli; do
        mkdir -p "$root/etc/php/$version/$use/conf.d"
        ln -s "/etc/php/$version/mods-available/$module.ini" "$root/etc/php/$version/$use/conf.d/${order:-20}-$module.ini"
    done
done
cp "$tree/usr/lib/php/$version/php.ini-production" "$root/etc/php/$version/fpm/php.ini"
cp "$tree/usr/lib/php/$version/php.ini-production.cli" "$root/etc/php/$version/cli/php.ini"

chroot "$root" "/usr/sbin/php-fpm$version" --version >&2
