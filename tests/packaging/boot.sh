#!/bin/sh
# Boot systemd as the first process of new namespaces: boot.sh LOWER FOLDER
# Its root is an overlay of the folders in LOWER (separated by `:`), whose changes are in FOLDER. It sees no network.
set -eu
lower=$1 folder=$2

if [ "${3-}" != inside ]; then
    # A group of its own, because systemd moves the processes of its group.
    hierarchy=/sys/fs/cgroup
    [ ! -d "$hierarchy/systemd" ] || hierarchy=$hierarchy/systemd
    group=$hierarchy/$(basename "$folder")-$$
    mkdir "$group"
    echo "$group" >"$folder/group"
    echo $$ >"$group/cgroup.procs"
    exec unshare --mount --pid --fork --kill-child=KILL --net --uts --ipc --cgroup sh "$0" "$lower" "$folder" inside
fi

root=$folder/root
mkdir "$root" "$folder/upper" "$folder/work"
mount --make-rprivate /
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys" # these settings are the host's
mount -t sysfs -o ro sysfs "$root/sys"
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd
