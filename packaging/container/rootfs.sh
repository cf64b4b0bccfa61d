#!/bin/sh
# Make the image's root file system, a minimal Debian with the package: rootfs.sh SUITE PACKAGE.deb TARBALL
# SOURCE_DATE_EPOCH is the latest time of a file in it. The user has a fixed id, so that volumes keep their owner.
set -eu
suite=$1 package=$2 tarball=$3

# mmdebstrap runs these lines by sh, with the root as $1.
# shellcheck disable=SC2016
set -- \
    --essential-hook='echo "tunnelmgr:x:900:" >>"$1/etc/group"' \
    --essential-hook='echo "tunnelmgr:x:900:900:tunnelmgr:/var/lib/tunnelmgr:/usr/sbin/nologin" >>"$1/etc/passwd"' \
    --essential-hook='echo "tunnelmgr:*:19000::::::" >>"$1/etc/shadow"' \
    --skip=cleanup/run --customize-hook='rm -rf "$1"/run/*' \
    --customize-hook='install -d -m 700 -o 900 -g 900 "$1/var/lib/tunnelmgr" "$1/var/cache/tunnelmgr"' \
    --customize-hook='install -d -m 750 -o 900 -g 900 "$1/var/log/tunnelmgr" "$1/run/tunnelmgr"' \
    --customize-hook='rm -rf "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/cron.daily" "$1/etc/logrotate.d"' \
    --customize-hook='rm -rf "$1/var/cache/debconf" "$1/var/cache/ldconfig" "$1"/etc/*- "$1"/var/lib/dpkg/*-old' \
    --customize-hook='find "$1" -xdev -type f -perm /6000 -exec chmod a-s {} +' \
    --customize-hook='rm -rf "$1/usr/lib/systemd" "$1/etc/systemd" "$1/var/lib/systemd"'

exec mmdebstrap --quiet --variant=essential --format=tar \
    --hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount "$@" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-include=/usr/share/doc/tunnelmgr/sbom.cdx.json' \
    --include="$package" --include=ca-certificates "$suite" "$tarball"
