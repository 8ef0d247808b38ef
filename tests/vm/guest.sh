# shellcheck shell=bash disable=SC2154
# Part of tests/vm/run: what one run adds to the root image, and the guest from its start to its end.

# --- the second archive, from $run/payload

quoted() { # each argument as one word for any shell
	local word quote="'\\''"
	for word; do printf "'%s' " "${word//\'/"$quote"}"; done
}

# ship FILE: its path in the guest is then in $shipped
ship() {
	[[ -x $1 && -f $1 ]] || die "$1 is not an executable file"
	shipped=/payload/bin/${1##*/}
	cp -L -- "$1" "$run/payload$shipped"
	put_libraries "$run/payload" "$1"
}

make_job() {
	local name file job=$run/payload/payload/job
	mkdir -p "$run/payload/payload/bin"
	: >"$run/payload/payload/stdin"
	case $verb in
	demo)
		ship "$program"
		args=("$shipped" /var/lib/dm-thin)
		;;
	test)
		ship "$program"
		args[0]=$shipped
		;;
	bench)
		ship "$program"
		args[0]=$shipped
		for name in "${bench_tools[@]%:*}"; do
			file=$(command -v "$name") || continue
			put "$run/payload" "$file"
			put_libraries "$run/payload" "$file"
		done
		;;
	shell)
		ship "$program"
		args=(sh)
		if [[ $tty ]]; then args+=(-l); else cat >"$run/payload/payload/stdin"; fi
		;;
	command)
		name=${args[0]}
		if [[ $name = */* ]]; then
			[[ ! -f $name ]] || file=$name
		elif ! grep -qxF -- "$name" "$root_dir/tools"; then
			file=$(type -P -- "$name") || die "$name: neither in the guest nor in PATH here"
		fi
		if [[ ${file-} ]]; then
			ship "$file"
			args[0]=$shipped
		fi
		;;
	esac
	{
		while IFS= read -r name; do
			case $name in DM_THIN_* | RUST_* | PROPTEST_*) printf 'export %s=%s\n' "$name" "$(quoted "${!name}")" ;; esac
		done < <(compgen -e)
		[[ ! $tty ]] || echo "stty $tty"
		# shellcheck disable=SC2016
		[[ $verb != shell ]] || echo 'PATH=$PATH:/payload/bin'
		# shellcheck disable=SC2016
		[[ $verb != demo ]] || echo 'echo "Linux $(uname -r) (guest)"'
		echo "exec $(quoted "${args[@]}")"
	} >"$job"
	{
		echo "WITHOUT=$(quoted "${without[*]-}")"
		echo "MODULES=$(quoted "${modules[*]}")"
		echo "UDEV=$udev"
		echo "TTY=$(quoted "$tty")"
	} >"$run/payload/payload/config"
}

# --- the guest

qemu_pid='' tail_pid='' saved_tty='' run=''

# shellcheck disable=SC2317 # reached by trap
cleanup() {
	trap '' INT TERM HUP
	[[ ! $qemu_pid ]] || kill -KILL "$qemu_pid" 2>/dev/null || true
	[[ ! $tail_pid ]] || kill "$tail_pid" 2>/dev/null || true
	[[ ! $saved_tty ]] || stty "$saved_tty" <&3 || true
	[[ ! $run ]] || rm -rf "$run"
	rm -rf "$cache/tmp.$$"
}

now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
to_ms() { awk -v s="$1" 'BEGIN { printf "%d", s * 1000 }'; }

start_qemu() {
	local accel=kvm path
	[[ $1 = kvm ]] || accel=tcg,thread=multi
	for path in status output results console; do : >"$run/$path"; done
	# shellcheck disable=SC2054 # QEMU's own commas
	local options=(
		-nodefaults -no-user-config -display none -no-reboot -nic none
		-M q35 -accel "$accel" -cpu max -smp 2 -m "$memory"
		-kernel "$run/vmlinuz" -initrd "$run/initrd"
		-append "console=ttyS0 loglevel=5 panic=-1 oops=panic random.trust_cpu=on no_timer_check"
		-chardev "file,id=console,path=${run//,/,,}/console" -serial chardev:console
		-device virtio-serial-pci
		-chardev "file,id=output,path=${run//,/,,}/output" -device virtserialport,chardev=output,nr=1
		-chardev "file,id=status,path=${run//,/,,}/status" -device virtserialport,chardev=status,nr=2
		-chardev "file,id=results,path=${run//,/,,}/results" -device virtserialport,chardev=results,nr=3
	)
	[[ ! $tty ]] || options+=(-chardev 'stdio,id=tty,signal=off' -serial chardev:tty)
	# werror=report: QEMU's own way with a full disk is to stop the guest.
	for path in "$disk" "${disks[@]/#/$run/}"; do
		options+=(-drive "file=${path//,/,,},if=virtio,format=raw,cache=writeback,discard=unmap,werror=report")
	done
	# Both go when this script is killed, however hard.
	setpriv --pdeathsig KILL qemu-system-x86_64 "${options[@]}" <&3 2>"$run/qemu.err" &
	qemu_pid=$!
	if [[ ! $tty ]]; then
		setpriv --pdeathsig KILL tail -q -c +1 -s 0.1 -f --pid="$qemu_pid" "$run/output" 2>/dev/null &
		tail_pid=$!
	fi
}

# Waits for the guest's end. Sets: hello, release, exit_status, guest_failed (init's words), ended (how it was ended here).
watch() {
	local begun done_at='' now
	hello='' release='' exit_status='' guest_failed='' ended=''
	begun=$(now_ms)
	while kill -0 "$qemu_pid" 2>/dev/null; do
		read -r -t 0.1 -u "$tick" || true
		now=$((${EPOCHREALTIME/[.,]/} / 1000))
		read_status
		[[ ! $exit_status$guest_failed || $done_at ]] || done_at=$now
		if [[ $1 = kvm && ! $hello ]] && ((now - begun > 20000)); then
			ended=no-hello
		elif [[ $cut && -e $cut && ! $done_at ]]; then
			ended='cut'
		elif [[ $done_at ]] && ((now - done_at > 30000)); then
			ended=no-poweroff
		elif [[ $timeout && ! $done_at ]] && ((now - begun >= timeout_ms)); then
			ended=timeout
		fi
		[[ ! $ended ]] || kill -KILL "$qemu_pid" 2>/dev/null || true
	done
	qemu_status=0
	wait "$qemu_pid" 2>/dev/null || qemu_status=$?
	qemu_pid=''
	[[ ! $tail_pid ]] || wait "$tail_pid" || true
	tail_pid=''
	[[ ! $saved_tty ]] || stty "$saved_tty" <&3 || true
	read_status
}
read_status() {
	local line
	while IFS= read -r line; do
		case $line in
		hello) hello=1 ;;
		"start "*) release=${line#start } ;;
		"exit "*) exit_status=${line#exit } ;;
		"fail "*) guest_failed=${line#fail } ;;
		esac
	done <"$run/status"
}

run_guest() {
	local accel=tcg why reason=''
	tty=''
	if [[ $verb = shell && -t 0 ]]; then
		tty="sane $(stty size | awk '$1 && $2 { printf "rows %d cols %d", $1, $2 }')"
		saved_tty=$(stty -g)
	fi
	make_job
	cp "$root_dir/initrd" "$run/initrd"
	archive "$run/payload" >>"$run/initrd"
	rm -rf "$run/payload"
	ln "$kernel_dir"/boot/vmlinuz-* "$run/vmlinuz" 2>/dev/null || cp "$kernel_dir"/boot/vmlinuz-* "$run/vmlinuz"
	truncate -s "$disk_size" "${disks[@]/#/$run/}"
	[[ $disk ]] || disk=$run/vda
	if [[ ! -e $disk ]]; then
		truncate -s 16G "$disk.new.$$"
		mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$disk.new.$$" >&2 || {
			rm -f "$disk.new.$$"
			die "could not make the scratch disk $disk"
		}
		mv -nT "$disk.new.$$" "$disk"
	fi
	timeout_ms=$(to_ms "${timeout:-0}")
	exec {tick}<> <(:)

	# Where a guest with /dev/kvm did not get to its init once, it does not until the machine is booted again.
	local refused=$cache/kvm-refused boot
	boot=$(</proc/sys/kernel/random/boot_id)
	if [[ ! -e /dev/kvm ]]; then
		why="this machine has no /dev/kvm"
	elif [[ -e $refused && $(head -n 1 "$refused") = "$boot" ]]; then
		why="$(tail -n +2 "$refused") (seen before; to try it again, remove $refused)"
	elif [[ ! -r /dev/kvm || ! -w /dev/kvm ]]; then
		why="no permission for /dev/kvm"
	else
		start_qemu kvm
		watch kvm
		if [[ $hello || ($ended && $ended != no-hello) ]]; then
			accel=kvm
		elif [[ $ended = no-hello ]]; then
			why="with /dev/kvm the guest's init did not start within 20 s"
			printf '%s\n' "$boot" "$why" >"$refused.$$"
			mv "$refused.$$" "$refused"
		else
			why="QEMU with /dev/kvm ended at once: $(grep -v '^$' "$run/qemu.err" | tail -n 1 | cut -c 1-120)"
		fi
	fi
	if [[ $accel = tcg ]]; then
		say "emulation (tcg): $why"
		start_qemu tcg
		watch tcg
		# Under emulation a kernel that patches its code on two CPUs dies of an int3 now and then, seconds before init.
		for _ in 1 2; do
			if [[ $hello ]] || ! grep -qa 'Oops: int3' "$run/console"; then break; fi
			say "the kernel died of an int3 while it booted, before init: starting again"
			start_qemu tcg
			watch tcg
		done
	else
		say "hardware virtualisation (kvm) worked"
	fi

	if grep -qa 'Kernel panic' "$run/console"; then
		reason="kernel panic: $(grep -ao 'Kernel panic.*' "$run/console" | head -n 1 | tr -d '\r')"
	elif [[ $guest_failed ]]; then
		reason=$guest_failed
	elif [[ $ended = cut ]]; then
		say "power cut, as asked (Linux $release, $accel)"
		exit 0
	elif [[ $ended = timeout ]]; then
		reason="timed out after $timeout s$([[ $release ]] || echo ", still booting")"
	elif [[ ! $exit_status ]]; then
		reason="the guest ended without a status"
		[[ $qemu_status -eq 0 ]] || reason+=" (QEMU's was $qemu_status)"
	fi
	if [[ $reason ]]; then
		say "guest failed: $reason"
		[[ ! -s $run/qemu.err ]] || sed 's/^/vm: qemu: /' "$run/qemu.err" >&2
		say "the last lines of its console (Linux ${release:-$kernel}, $accel):"
		# Or those from a kernel's first complaint on.
		{ grep -a -m 1 -A 60 -E 'BUG:|kernel BUG at|Oops|WARNING:' "$run/console" || tail -n 40 "$run/console"; } | tr -d '\r' | sed 's/^/  | /' >&2
		status=1
	else
		[[ $ended != no-poweroff ]] || say "the command ended, but the guest could not power off within 30 s and was killed"
		status=$exit_status
	fi
	if [[ $verb = bench && $status -eq 0 ]]; then
		bench_result "$run/results" || status=$?
	fi
	if [[ $verb = test ]]; then
		suite_result "$run/output" "$status" "${release:-?} (guest, $accel)" || status=$?
	fi
	if [[ $cut && ! $reason ]]; then
		say "the command ended by itself, status $status, before the power cut"
		[[ $status -ne 0 ]] || status=1
	fi
	exit "$status"
}

