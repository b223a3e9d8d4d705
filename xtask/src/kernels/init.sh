#!/bin/busybox sh
# The first process of the guest: mounts what a system mounts, runs the payload, powers off.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# tracefs and bpffs stay unmounted: the agent has to cope.
# What the kernel has to complain of from here on, with its traces.
echo 8 >/proc/sys/kernel/printk
ifconfig lo 127.0.0.1 up
sh /payload.sh
echo "GUEST-STATUS $?"
poweroff -f
