#!/bin/sh
# Boot systemd as the first process of new namespaces: boot.sh NAME NETNS LOWER FOLDER
# NETNS is the file of an existing network namespace. The root is an overlay of the folders in LOWER (separated by `:`),
# whose changes are in FOLDER/upper.
set -eu
name=$1 netns=$2 lower=$3 folder=$4

if [ "${5-}" != inside ]; then
    # Groups of its own in each hierarchy that systemd uses, because it takes the first group of its namespace as its own.
    hierarchies=/sys/fs/cgroup
    if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
        hierarchies="systemd unified pids memory devices cpu cpuacct blkio"
    fi
    for hierarchy in $hierarchies; do
        group=$(cd /sys/fs/cgroup && cd "$hierarchy" 2>/dev/null && pwd -P)/$(basename "$folder")-$$
        if mkdir "$group" 2>/dev/null; then # not, if two names are one hierarchy, or there is no such controller
            echo "$group" >>"$folder/groups"
            echo $$ >"$group/cgroup.procs"
        fi
    done
    # nsenter, because `ip netns exec` would replace /sys, in which the groups are.
    exec nsenter --net="$netns" unshare --mount --pid --fork --kill-child=KILL --uts --ipc --cgroup \
        sh "$0" "$name" "$netns" "$lower" "$folder" inside
fi

root=$folder/root
mkdir "$root" "$folder/upper" "$folder/work"
mount --make-rprivate /
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"
echo "$name" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" >"$root/etc/hosts"

# Of the kernel's settings, only those of the network namespace are the machine's own.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
# Not chroot, in which the kernel allows no user namespaces, and so no unit with PrivateUsers=.
cd "$root"
pivot_root . mnt
umount -l /mnt
# As on a host: what a unit mounts in a namespace of its own for all to see, such as its credentials, must appear here.
mount --make-rshared /
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
