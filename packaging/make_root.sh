#!/bin/sh
# Make a minimal Debian or Ubuntu in a folder: make_root.sh SUITE FOLDER OPTION…, with further options for mmdebstrap
set -eu
suite=$1 folder=$2
shift 2

if ubuntu-distro-info --all | grep -qx "$suite"; then
    # Debian 12 has no package with Ubuntu's keys. That of Debian 13 is verified like any package of Debian.
    keys=$(mktemp -d)
    trap 'rm -rf "$keys"' EXIT
    chmod 755 "$keys" # apt verifies signatures as another user
    mmdebstrap --quiet --variant=extract --include=ubuntu-archive-keyring trixie "$keys/root"
    set -- --components=main,universe --include=apt,ubuntu-keyring \
        --keyring="$keys/root/usr/share/keyrings/ubuntu-archive-keyring.gpg" "$@"
fi
mmdebstrap --quiet --variant=minbase --format=directory "$@" "$suite" "$folder"
