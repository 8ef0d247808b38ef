#!/usr/bin/env bash
# In the guest: containerd and the snapshotter are killed while clients use them; see kills.
#
#   kills.sh FIRST LAST cut|check
#
# Kills number FIRST to LAST. Then the guest is to be killed, or all is removed and checked. What must be in containerd at the
# beginning is in DM_THIN_ACKNOWLEDGED. Lines that begin with "did" and "will" are for kills.
set -euo pipefail
# shellcheck source=crates/dm-thin-snapshotter/tests/containerd/guest.sh
. /var/lib/guest.sh
first=$1 last=$2 ending=$3 images=3 tree=/var/lib/tree
mkdir /run/kills
log=/run/kills/log
for name in ${DM_THIN_ACKNOWLEDGED-}; do echo "did commit $name"; done >$log

# Starts a program again each time that it ended, until /run/kills/NAME.stop is there.
keep_up() {
	local name=$1
	shift
	while [[ ! -e /run/kills/$name.stop ]]; do
		"$@" &
		echo $! >"/run/kills/$name.pid"
		wait $! 2>/dev/null || true
	done
}
serve() {
	keep_up snapshotter /var/lib/dm-thin-snapshotter --root $tree --address "$socket" --data-size 4G --base-size 64M \
		--ready 2 --deactivate-on-exit --log warn &
	snapshotter_loop=$!
}
# Ends a program that is kept up.
end() {
	touch "/run/kills/$1.stop"
	kill "$(<"/run/kills/$1.pid")"
	wait "$2"
}
# A call that fails because of a kill takes as long as that call, not for ever.
call() { timeout -s KILL 60 ctr "$@"; }
snapshots() { call snapshots --snapshotter dm-thin "$@"; }
# A key may contain spaces: the columns begin where their titles do.
keys() {
	snapshots ls | awk 'NR == 1 { width = index($0, "PARENT") - 1; next }
		{ key = substr($0, 1, width); sub(/ +$/, "", key); print key }'
}

log() {
	echo "$*" >>$log
	echo "$*"
}
# A call of a client, which may fail.
try() {
	local kind=$1 name=$2
	shift 2
	"$@" >/dev/null 2>&1 && log "did $kind $name"
}
# What clients do, under names that only this client uses.
client() {
	local client=$1 round=0 name image said key
	while [[ ! -e /run/kills/clients.stop ]]; do
		name=$first-$client-$((++round)) image=$(((client + round) % images + 1))
		try import "$name" call image import --snapshotter dm-thin /var/lib/bb-$image.tar || continue
		try tag "$name" call image tag docker.io/local/bb:$image "docker.io/local/own:$name" || true
		try prepare "$name" snapshots prepare "layer-$name" || true
		try commit "$name" snapshots commit "committed-$name" "layer-$name" || true
		try child "$name" snapshots prepare "child-$name" "committed-$name" || true
		try view "$name" snapshots view "view-$name" "committed-$name" || true
		if said=$(call run --no-pivot --snapshotter dm-thin --rm "docker.io/local/own:$name" "c-$name" /bin/cat /etc/layer 2>&1)
		then
			log "did run $name"
			# What ran has read the layer of its image, or nothing because it was cut off.
			[[ $image = 1 ]] || [[ ! $said ]] || grep -q "two of $image" <<<"$said" || echo "$name: $said" >>/run/kills/wrong
		fi
		# Every second one stays, to be found after the kills.
		if ((round % 2 == 0)); then
			log "will remove $name"
			for key in view child committed; do try remove "$name" snapshots rm "$key-$name" || true; done
		fi
		try untag "$name" call image rm --sync "docker.io/local/own:$name" docker.io/local/bb:$image || true
	done
}

# What was committed, and not removed since, is in containerd and in the snapshotter: a key that this one does not have is not
# listed.
check_acknowledged() {
	step "what was acknowledged is there"
	awk '/^did commit / { is[$3] } /^will remove / { delete is[$3] } END { for (name in is) print "committed-" name }' $log \
		>/run/kills/expected
	keys >/run/kills/keys
	echo "$(wc -l </run/kills/expected) acknowledged, $(wc -l </run/kills/keys) listed"
	local name lost=''
	while read -r name; do grep -qxF -- "$name" /run/kills/keys || lost+=" $name"; done </run/kills/expected
	[[ ! $lost ]] || { echo "lost:$lost"; exit 1; }
}
check_content() { [[ ! -e /run/kills/wrong ]] || { cat /run/kills/wrong; exit 1; }; }

probe=0
# Both answer: containerd connects to the snapshotter again, at most 3 seconds after it tried last.
both_answer() {
	local begun=$SECONDS
	while ((SECONDS - begun < 120)); do
		((++probe))
		if snapshots prepare probe-$probe >/dev/null 2>&1 && snapshots rm probe-$probe >/dev/null 2>&1; then
			return
		fi
		sleep 0.2
	done
	echo "they do not answer"
	exit 1
}

serve
keep_up containerd containerd --config /var/lib/config.toml --log-level error 2>/var/lib/containerd.log &
containerd_loop=$!
both_answer
check_acknowledged
if ((first <= last)); then
	step "clients, and kills $first to $last"
	clients=()
	for number in 1 2 3 4; do
		client $number &
		clients+=($!)
	done
fi
for ((number = first; number <= last; number++)); do
	# So long that each kind of call is cut off now and then: a round of a client takes half a minute in an emulated guest.
	sleep $((3 + RANDOM % 15)).$((RANDOM % 10))
	case $((number % 4)) in
	1) killed=snapshotter ;;
	2) killed=containerd ;;
	3) killed="containerd snapshotter" ;;
	0)
		check_content
		echo "kill $number: the guest"
		sleep 60
		exit 1
		;;
	esac
	for name in $killed; do kill -KILL "$(<"/run/kills/$name.pid")" || true; done
	begun=$SECONDS
	both_answer
	echo "kill $number: $killed; both answer after $((SECONDS - begun)) s"
done
[[ $ending = check ]]
if ((first <= last)); then
	touch /run/kills/clients.stop
	wait "${clients[@]}"
fi
check_content
check_acknowledged
while read -r key; do snapshots info "$key" >/dev/null; done </run/kills/keys

step "all is removed"
# Containers and leases of calls that were cut off, too.
remove_all() {
	local each
	for each in $(call task ls -q); do
		call task kill --signal 9 "$each" || true
		call task rm --force "$each" || true
	done
	for each in $(call container ls -q); do call container rm "$each" || true; done
	for each in $(call leases ls -q); do call leases rm "$each" || true; done
	for each in $(call image ls -q); do call image rm --sync "$each" || true; done
	# containerd's garbage collection removes a view, which ctr gives no root label, and leaves it among its parent's children.
	# What cannot be removed for that is left to the garbage collection.
	while read -r each; do
		snapshots rm "$each" || snapshots label "$each" containerd.io/gc.root= || true
	done < <(keys)
	call content prune references || true
}
for _ in {1..10}; do
	remove_all >/run/kills/removals 2>&1
	[[ $(keys) ]] || break
done
# What was refused last.
[[ ! $(keys) ]] || { cat /run/kills/removals; keys; exit 1; }
[[ ! $(call content ls -q) ]]
# Mounts that containerd forgot would keep snapshots.
if grep dm-thin- /proc/mounts; then exit 1; fi

step "nothing is left"
# The garbage collection of the snapshotter's part may still run, and volumes are deleted in the background.
left() { /var/lib/dm-thin --root $tree ls -H; }
for _ in {1..100}; do [[ $(left) ]] || break; sleep 0.2; done
left
[[ ! $(left) ]]
end containerd $containerd_loop
end snapshotter $snapshotter_loop
left
[[ ! $(left) ]]
/var/lib/dm-thin --root $tree check
dmsetup ls
step "all done"
