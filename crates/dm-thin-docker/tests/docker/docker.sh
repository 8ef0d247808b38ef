#!/usr/bin/env bash
# In the guest: dockerd with its devicemapper driver, and dm-thin on what it leaves; see run.
set -euo pipefail
export PATH=/var/lib/root/usr/bin:/var/lib/root/usr/sbin:$PATH TMPDIR=/var/lib/tmp DOCKER_HOST=unix:///run/docker.sock
root=/var/lib/docker-test out=/var/lib/out pool=(dm.loopdatasize=512M dm.loopmetadatasize=16M)
filesystem=ext4 base_size=128M image_options=loop
mkdir -p $TMPDIR $out /mnt
chmod 1777 $TMPDIR $out
# Those of the guest stay.
for library in /var/lib/lib/*; do
	[[ -e /lib/x86_64-linux-gnu/${library##*/} ]] || cp "$library" /lib/x86_64-linux-gnu/
done

step() { echo "== $*"; }
fail() {
	echo "FAILED: $*"
	exit 1
}

start_docker() {
	mkdir -p /sys/fs/cgroup
	grep -q ' /sys/fs/cgroup ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup
	# Now, while nothing else runs; see dm-thin-snapshotter's container.sh.
	for controller in $(</sys/fs/cgroup/cgroup.controllers); do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
	done
	dockerd --data-root $root --exec-root /run/docker --pidfile /run/docker.pid --storage-driver devicemapper \
		--storage-opt dm.override_udev_sync_check=true --storage-opt dm.fs=$filesystem --storage-opt dm.basesize=$base_size \
		"${pool[@]/#/--storage-opt=}" --bridge=none --iptables=false --ip6tables=false >/run/dockerd.log 2>&1 &
	dockerd=$!
	for _ in {1..900}; do
		if docker version >/dev/null 2>&1; then return; fi
		kill -0 $dockerd 2>/dev/null || break
		sleep 0.2
	done
	cat /run/dockerd.log
	fail "dockerd does not answer"
}

stop_docker() {
	kill -TERM "$dockerd"
	wait "$dockerd" || echo "dockerd: status $?"
	# Docker leaves its pool active.
	for _ in {1..50}; do
		dmsetup ls | grep -q '^docker-' || break
		dmsetup ls | awk '/^docker-/ { print $1 }' | grep -v -- '-pool$' | xargs -r -n 1 dmsetup remove || true
		dmsetup ls | awk '/^docker-.*-pool\t/ { print $1 }' | xargs -r -n 1 dmsetup remove || true
		sleep 0.2
	done
	losetup -D
	dmsetup ls
	! dmsetup ls | grep -q '^docker-' || fail "Docker's pool stays active"
	[[ ! $(losetup --list --noheadings) ]] || fail "Docker's loop devices stay attached"
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

import_one() {
	mkdir -p /run/image/bin /run/image/etc
	head -c 2000000 /dev/urandom >/run/image/etc/first
	tar -C /run/image -cf /run/image.tar .
	docker import /run/image.tar one:1 >/dev/null
}

# create NAME IMAGE: a container with a file /NAME; its digest is then in $digest
create() {
	head -c $((100000 + RANDOM * 10)) /dev/urandom >/run/random
	digest=$(sum /run/random)
	docker create --name "$1" --network none "$2" /bin/sh >/dev/null
	docker cp /run/random "$1:/$1"
}

everything() { (cd $root && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum); }

as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }

# clean [xfs]
clean() {
	if [[ ${1-} = xfs ]]; then
		filesystem=xfs base_size=320M root=/var/lib/docker-xfs image_options=loop,nouuid
		pool=(dm.loopdatasize=1G dm.loopmetadatasize=16M)
	fi
	step "states on $filesystem"
	start_docker
	docker version --format '{{.Server.Version}}'
	docker info 2>/dev/null | grep -A 12 'Storage Driver'
	import_one
	create seed one:1
	local -A sums=([two]=$digest)
	docker commit seed two:latest >/dev/null
	docker rm seed >/dev/null
	for number in 1 2 3; do
		create clean-$number "$([[ $((number % 2)) = 0 ]] && echo one:1 || echo two)"
		sums[clean-$number]=$digest
	done
	docker images
	docker ps -a
	stop_docker

	step "ls"
	chmod -R a+rX $root
	local before name
	before=$(everything)
	as_nobody dm-thin docker ls --all $root
	as_nobody dm-thin docker ls --json $root >/run/ls.json
	cat /run/ls.json
	echo
	for name in one:1 two:latest clean-{1..3}; do grep -q "\"$name\"" /run/ls.json || fail "$name is not listed"; done
	tr -d ' \n' </run/ls.json | grep -q '"findings":\[\]' || fail "findings in a directory of a Docker that was stopped"
	tr -d ' \n' </run/ls.json | grep -q '"transaction":"clean"' || fail "the transaction is not clean"

	step "export"
	for name in clean-{1..3}; do
		as_nobody dm-thin docker export $root "$name" --raw $out/device.img
		mount -o "$image_options,ro" $out/device.img /mnt
		[[ $(sum "/mnt/rootfs/$name") = "${sums[$name]}" ]] || fail "$name has other content"
		[[ $(sum /mnt/rootfs/etc/first) = "$(sum /run/image/etc/first)" ]] || fail "$name: the image has other content"
		umount /mnt
		rm $out/device.img
	done
	as_nobody dm-thin docker export $root two --raw $out/two.img
	mount -o "$image_options,ro" $out/two.img /mnt
	[[ $(sum /mnt/rootfs/seed) = "${sums[two]}" ]] || fail "the image two has other content"
	umount /mnt
	rm $out/two.img
	dm-thin docker export $root clean-1 --tar $out/clean-1.tar
	mkdir /run/tar
	tar -C /run/tar -xf $out/clean-1.tar
	[[ $(sum /run/tar/clean-1) = "${sums[clean-1]}" ]] || fail "the archive of clean-1 has other content"

	step "adopt"
	dm-thin --root /var/lib/tree init --data-size 2G --base-size $base_size --filesystem $filesystem
	dm-thin --root /var/lib/tree docker adopt $root
	for name in clean-1 clean-2; do
		local id
		id=$(basename "$(dirname "$(grep -l "\"Name\":\"/$name\"" $root/containers/*/config.v2.json)")")
		dm-thin --root /var/lib/tree mount "$(<$root/image/devicemapper/layerdb/mounts/"$id"/mount-id)" /mnt
		[[ $(sum "/mnt/rootfs/$name") = "${sums[$name]}" ]] || fail "$name has other content in the tree"
		umount /mnt
	done
	dm-thin --root /var/lib/tree ls
	[[ $(everything) = "$before" ]] || fail "the directory has been changed"
	dm-thin --root /var/lib/tree close
	rm -r /var/lib/tree

	step "adopt in place, and back"
	in_place() { dm-thin --root /var/lib/in-place "$@"; }
	in_place docker adopt $root --in-place
	[[ $(in_place -H ls | wc -l) = "$(dm-thin -H docker ls --all $root | wc -l)" ]] || fail "not all are adopted"
	in_place close
	dm-thin docker deactivate $root
	rm -r /var/lib/in-place
	start_docker
	create clean-4 two
	sums[clean-4]=$digest
	docker cp clean-1:/clean-1 /run/again
	[[ $(sum /run/again) = "${sums[clean-1]}" ]] || fail "clean-1 has other content in Docker"
	stop_docker

	step "adopt in place"
	in_place docker adopt $root --in-place
	for name in clean-{1..4}; do
		id=$(basename "$(dirname "$(grep -l "\"Name\":\"/$name\"" $root/containers/*/config.v2.json)")")
		id=$(<$root/image/devicemapper/layerdb/mounts/"$id"/mount-id)
		in_place add "copy-$name" --of "$id"
		in_place mount "copy-$name" /mnt
		[[ $(sum "/mnt/rootfs/$name") = "${sums[$name]}" ]] || fail "$name has other content in place"
		echo written >"/mnt/rootfs/$name"
		umount /mnt
	done
	in_place close
	dm-thin docker deactivate $root
	! in_place add late 2>/dev/null || fail "a pool that is not active"
	dm-thin docker activate $root
	in_place mount copy-clean-4 /mnt
	[[ $(</mnt/rootfs/clean-4) = written ]] || fail "copy-clean-4 lost what was written"
	umount /mnt
	in_place check
	for name in clean-{1..4}; do in_place rm --yes "copy-$name"; done
	in_place close
	dm-thin docker deactivate $root
	rm -r /var/lib/in-place $out/clean-1.tar /run/tar
	[[ $filesystem = ext4 ]] || rm -r $root
}

# A pool that is not on Docker's loop files, as with direct LVM.
direct() {
	local sectors=$((128 * 2048)) device
	root=/var/lib/docker-direct pool=(dm.thinpooldev=/dev/mapper/thinpool)
	step "a pool on other devices"
	dmsetup create thinpool_tmeta --table "0 32768 linear /dev/vdb 0"
	dmsetup create thinpool_tdata --table "0 $sectors linear /dev/vdb 32768"
	dmsetup create thinpool \
		--table "0 $sectors thin-pool /dev/mapper/thinpool_tmeta /dev/mapper/thinpool_tdata 128 0 1 skip_block_zeroing"
	start_docker
	import_one
	create direct one:1
	stop_docker
	chmod -R a+rX $root
	dm-thin --root /var/lib/direct docker adopt $root --in-place --pool thinpool
	local id
	id=$(<$root/image/devicemapper/layerdb/mounts/"$(basename $root/containers/*)"/mount-id)
	dm-thin --root /var/lib/direct mount "$id" /mnt
	[[ $(sum /mnt/rootfs/direct) = "$digest" ]] || fail "the container has other content in place"
	umount /mnt
	dm-thin --root /var/lib/direct close
	rm -r /var/lib/direct
	dmsetup remove thinpool

	as_nobody dm-thin docker ls --json $root | grep -q '"kind":"no_pool"' || fail "no finding that there is no pool"
	for device in tmeta tdata; do cat /dev/mapper/thinpool_$device >$out/$device; done
	as_nobody dm-thin docker ls --all $root --metadata $out/tmeta --data $out/tdata
	as_nobody dm-thin docker export $root direct --raw $out/copy.img --metadata $out/tmeta --data $out/tdata
	dm-thin docker export $root direct --raw $out/device.img \
		--metadata /dev/mapper/thinpool_tmeta --data /dev/mapper/thinpool_tdata
	cmp $out/copy.img $out/device.img
	mount -o "$image_options,ro" $out/copy.img /mnt
	[[ $(sum /mnt/rootfs/direct) = "$digest" ]] || fail "the container has other content"
	umount /mnt
	# Without Docker's files devices have no names.
	mkdir $out/alone
	mv $out/tmeta $out/alone/metadata
	mv $out/tdata $out/alone/data
	as_nobody dm-thin docker ls $out/alone
	rm -r $out/copy.img $out/device.img $out/alone $root
}

# stream CUT synced|unsynced
stream() {
	# Before Docker mends it.
	check
	start_docker
	local number
	for number in {1..500}; do
		create "cut-$1-$number" "$([[ $((number % 2)) = 0 ]] && echo one:1 || echo two)"
		[[ $2 = unsynced ]] || sync
		echo "created cut-$1-$number $digest $2"
		if ((number % 3 == 0)); then
			echo "removing cut-$1-$((number - 1))"
			# The line is on its way.
			sleep 0.3
			docker rm "cut-$1-$((number - 1))" >/dev/null
			echo "removed cut-$1-$((number - 1))"
		fi
	done
}

check() {
	local known name digest synced state listed=0 stranded=0 lost=0 wrong=0 late=0
	chmod -R a+rX $root
	step "check"
	as_nobody dm-thin -H docker ls --all $root >/run/rows 2>/run/findings
	# Devices that belong to no container: the files in them tell whose they were.
	as_nobody dm-thin -H docker ls $root 2>/dev/null |
		awk -F '\t' '$1 == "device" && $7 ~ /^(ok|stranded|interrupted)$/ { print $2 == "-" ? $3 : $2 }' >/run/devices
	while read -r device; do
		as_nobody dm-thin docker export $root "$device" --raw $out/device.img
		if mount -o "$image_options" $out/device.img /mnt; then
			for name in /mnt/rootfs/cut-*; do [[ ! -e $name ]] || echo "${name##*/} $(sum "$name")" >>/run/stranded; done
			umount /mnt
		fi
		rm $out/device.img
	done < <(grep -v -- '-init$' /run/devices)
	touch /run/stranded
	read -r -d '' -a all <<<"${DM_THIN_DOCKER_KNOWN-}" || true
	for known in "${all[@]}"; do
		IFS=: read -r name digest synced <<<"$known"
		state=$(awk -F '\t' -v name="$name" '$1 == "container" && $2 == name { print $7 }' /run/rows)
		if [[ $state = ok || $state = interrupted ]]; then
			listed=$((listed + 1))
			as_nobody dm-thin docker export $root "$name" --raw $out/device.img >/dev/null
			# Its journal is replayed.
			mount -o "$image_options" $out/device.img /mnt
			if [[ ! -e /mnt/rootfs/$name || $(sum "/mnt/rootfs/$name") != "$digest" ]]; then
				echo "$name ($state, $synced): other content"
				if [[ $synced = synced ]]; then wrong=$((wrong + 1)); else late=$((late + 1)); fi
			fi
			umount /mnt
			rm $out/device.img
		elif grep -q "^$name $digest\$" /run/stranded; then
			stranded=$((stranded + 1))
			echo "$name: ${state:-not listed}, its device is there"
		elif [[ $synced = unsynced ]]; then
			late=$((late + 1))
			echo "$name: ${state:-not listed}; was not synced"
		else
			lost=$((lost + 1))
			echo "$name: ${state:-not listed}, LOST"
		fi
	done
	echo "acknowledged: ${#all[@]}; listed: $listed, of which $wrong with other content; found on a device without an owner: $stranded;" \
		"not synced, and gone or incomplete: $late; lost: $lost"
	echo "findings: $(wc -l </run/findings)"
	cat /run/findings
	awk -F '\t' '$7 != "ok"' /run/rows
	[[ $lost = 0 && $wrong = 0 ]] || fail "containers are lost"
}

"$@"
step "$1: done"
