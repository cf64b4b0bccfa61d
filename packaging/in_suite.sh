#!/bin/sh
# Run a target of the Makefile in a minimal Debian of another release: in_suite.sh SUITE TARGET SETTING…
# A package belongs to one minor version of Python, so it is built on the release that it is for. Run it as root.
set -eu
suite=$1
shift
checkout=$(cd "$(dirname "$0")/.." && pwd)
root=$checkout/build/suite/$suite

if [ ! -d "$root" ]; then
    mkdir -p "$(dirname "$root")"
    rm -rf "$root.unfinished"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make,pandoc,python3-venv "$suite" \
        "$root.unfinished"
    mv "$root.unfinished" "$root"
fi

# The mounts end with this namespace.
# shellcheck disable=SC2016
exec unshare --mount sh -eu -c '
root=$1 checkout=$2
shift 2
mount --make-rprivate /
mkdir -p "$root$checkout"
mount --bind "$checkout" "$root$checkout"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
for file in /etc/resolv.conf /etc/pip.conf; do
    [ ! -e "$file" ] || cp "$file" "$root$file"
done
exec env -u DEBIAN_SUITE -u VIRTUAL_ENV HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" make -C "$checkout" PROGRAMS=pandoc BACKEND=/root/backend SBOM=/root/sbom "$@"
' sh "$root" "$checkout" "$@"
