#!/bin/sh
# Run a target of the Makefile in a minimal Debian or Ubuntu of another release: in_suite.sh SUITE TARGET SETTING…
# A package belongs to one minor version of Python, so it is built on the release that it is for. Run it as root.
set -eu
suite=$1
shift
checkout=$(cd "$(dirname "$0")/.." && pwd)
root=$checkout/build/suite/$suite

if [ ! -d "$root" ]; then
    mkdir -p "$(dirname "$root")"
    rm -rf "$root.unfinished"
    sh "$checkout/packaging/make_root.sh" "$suite" "$root.unfinished" \
        --include=ca-certificates,git,make,pandoc,python3-venv
    mv "$root.unfinished" "$root"
fi

# The mounts end with this namespace.
# shellcheck disable=SC2016
exec unshare --mount sh -eu -c '
root=$1 checkout=$2
shift 2
mount --make-rprivate /
mount --bind "$root" "$root" # the build changes how mounts spread, which takes a root that is one
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$checkout" # after the mount of /tmp, in which it may be
mount --bind "$checkout" "$root$checkout"
# What pip needs to reach the index that this machine uses: bound, not copied, because it may name a password.
for place in /etc/resolv.conf /etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" /etc/ssl/certs/ca-certificates.crt; do
    if [ -d "$place" ]; then
        mkdir -p "$root$place"
        mount --bind "$place" "$root$place"
    elif [ -e "$place" ]; then
        touch "$root$place"
        mount --bind "$place" "$root$place"
    fi
done
exec env -u DEBIAN_SUITE -u VIRTUAL_ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" make -C "$checkout" PROGRAMS=pandoc BACKEND=/root/backend SBOM=/root/sbom "$@"
' sh "$root" "$checkout" "$@"
