#!/usr/bin/env bash
# In the guest: containerd and runc on the snapshotter; see container.
set -euo pipefail
# shellcheck source=crates/dm-thin-snapshotter/tests/containerd/guest.sh
. /var/lib/guest.sh
image=docker.io/local/bb:1

serve() {
	/var/lib/dm-thin-snapshotter --root /var/lib/tree --address "$socket" --data-size 4G --base-size 64M --ready 2 --log debug &
	snapshotter=$!
	for _ in {1..600}; do [[ -S $socket ]] && return; sleep 0.1; done
	echo "no socket"; exit 1
}

serve
containerd --config /var/lib/config.toml --log-level warn &
for _ in {1..600}; do ctr version >/dev/null 2>&1 && break; sleep 0.1; done

step import
ctr image import --snapshotter dm-thin /var/lib/bb-1.tar
ctr snapshots --snapshotter dm-thin ls

# The guest's / is no mount that pivot_root can leave.
run() { ctr run --no-pivot --snapshotter dm-thin "$@"; }
step "a container"
said=$(run --rm $image first /bin/sh -c 'cat /etc/layer; grep " / " /proc/mounts; echo data >/file; cat /file')
echo "$said"
[[ $said = two*/dev/mapper/dm-thin-*ext4\ rw*data ]]

step "a read-only container"
said=$(run --rm --read-only $image second /bin/sh -c 'cat /etc/layer; echo x >/file || echo refused')
echo "$said"
[[ $said = *two*refused* ]]

step "a view of the image"
mkdir /var/lib/mounted
parent=$(ctr snapshots --snapshotter dm-thin ls | awk '$3 == "Committed" { print $1 }')
# ctr gives a view no root label: the garbage collection that follows the last container may take it away.
for _ in 1 2 3; do
	mounting=$(ctr snapshots --snapshotter dm-thin view --target /var/lib/mounted view "$parent")
	ctr snapshots --snapshotter dm-thin label view containerd.io/gc.root=test && break
done
eval "$mounting"
ctr snapshots --snapshotter dm-thin info view | grep '"Kind": "View"'
grep ' /var/lib/mounted ext4 ro' /proc/mounts
[[ $(</var/lib/mounted/etc/layer) = two ]]
# For containerd it is gone; its garbage collection tries until it is not mounted.
ctr snapshots --snapshotter dm-thin rm view
umount /var/lib/mounted

step "a container with a larger file system"
size=268435456
said=$(run --rm --snapshotter-label containerd.io/snapshot/max-size=$size $image third /bin/sh -c 'df /')
echo "$said"
[[ $(tr -s ' \n' ' ' <<<"$said" | cut -d ' ' -f 9) -gt $((size * 9 / 10 / 1024)) ]]

step "a container is committed"
own() { ctr snapshots --snapshotter dm-thin "$@"; }
run $image fifth /bin/sh -c 'echo own >/file'
ctr snapshots --snapshotter dm-thin info fifth | grep '"Kind": "Active"'
# Their labels keep both from the garbage collection that follows the container's removal.
own commit own-layer fifth
own label own-layer containerd.io/gc.root=test
ctr container rm fifth
own tree | grep own-layer
own usage own-layer
[[ $(own usage -b own-layer | awk '$1 == "own-layer" { print $2 }') -gt 0 ]]
# ctr prints -o without options, too.
mounting=$(own prepare --target /var/lib/mounted again own-layer)
eval "${mounting% -o*}"
[[ $(</var/lib/mounted/file) = own && $(</var/lib/mounted/etc/layer) = two ]]
umount /var/lib/mounted
own rm again
own rm own-layer

step "containers in a row: their snapshots are ready"
for number in 1 2 3 4; do run --rm $image row-$number /bin/cat /etc/layer; done

step "a restart of the snapshotter under a running container"
run -d $image fourth /bin/sh -c 'while :; do sleep 1; done'
kill $snapshotter
wait $snapshotter
serve
said=$(ctr task exec --exec-id e fourth /bin/sh -c 'echo still >/file; cat /file')
echo "$said"
[[ $said = still ]]
# containerd tries to connect again at most 3 s after it did so last: a call that finds nobody in between fails.
for _ in {1..50}; do ctr snapshots --snapshotter dm-thin usage >/dev/null && break; sleep 0.2; done
ctr snapshots --snapshotter dm-thin usage
ctr task kill --signal 9 fourth
for _ in {1..100}; do ctr task ls | grep -q STOPPED && break; sleep 0.2; done
ctr task rm fourth || true
ctr container rm fourth

step "removed with the image"
ctr image rm --sync $image
ctr content prune references >/dev/null 2>&1 || true
for _ in {1..50}; do [[ $(ctr snapshots --snapshotter dm-thin ls | wc -l) = 1 ]] && break; sleep 0.2; done
ctr snapshots --snapshotter dm-thin ls
[[ $(ctr snapshots --snapshotter dm-thin ls | wc -l) = 1 ]]
left() { find /dev/mapper -name 'dm-thin-*' ! -name '*-pool*'; }
# The volume that is kept active, which is no snapshot, and nothing else.
is_kept() { [[ $(left | wc -l) = 1 && $(left) = *+* ]]; }
for _ in {1..50}; do is_kept && break; sleep 0.2; done
left
is_kept
kill %2
kill $snapshotter
wait $snapshotter
step "all done"
