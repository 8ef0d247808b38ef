# shellcheck shell=bash
# Sourced in the guest by container.sh and kills.sh: the surroundings of containerd, and its configuration.
export PATH=/var/lib/root/usr/bin:/var/lib/root/usr/sbin:$PATH
export TMPDIR=/var/lib/tmp CONTAINERD_SNAPSHOTTER=dm-thin
socket=/run/dm-thin/snapshotter.sock
mkdir -p $TMPDIR /run /sys/fs/cgroup
grep -q ' /sys/fs/cgroup ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup
# Now, while nothing else runs: the first cgroup of a controller has the kernel patch its own code, which an emulated machine
# with two CPUs does not always survive.
for controller in $(</sys/fs/cgroup/cgroup.controllers); do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
done
mkdir /sys/fs/cgroup/keep
# runc runs itself without an environment.
mkdir -p /lib/x86_64-linux-gnu
cp -a /var/lib/root/usr/lib/x86_64-linux-gnu/libseccomp.so.2* /lib/x86_64-linux-gnu/
cat >/var/lib/config.toml <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[proxy_plugins.dm-thin]
  type = "snapshot"
  address = "$socket"
END
step() { echo "== $*"; }
