# shellcheck shell=bash disable=SC2154
# Part of tests/vm/run: installs what is missing, fetches the guest's kernel, makes its root image.

# The guest loads `modules`; it can load those in `optional` on demand, where the kernel has them.
drivers=(virtio_pci virtio_console virtio_blk) # loaded by init before all others
modules=(loop dm-mod dm-thin-pool dm-flakey xfs)
optional=(crc32c-intel xts dm-log-writes dm-zero dm-delay dm-dust dm-snapshot dm-crypt dm-era overlay nbd btrfs)

# command:package
needed=(
	qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio modprobe:kmod depmod:kmod xz:xz-utils
	mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs thin_check:thin-provisioning-tools dmsetup:dmsetup
	mount:mount blkid:util-linux lsblk:util-linux flock:util-linux setpriv:util-linux
)
guest_tools=(
	bash modprobe dmsetup mount umount losetup blkid blkdiscard blockdev lsblk findmnt fallocate wipefs
	mkfs.ext4 mke2fs e2fsck fsck.ext4 resize2fs dumpe2fs tune2fs debugfs
	mkfs.xfs xfs_growfs xfs_repair xfs_io xfs_db
	thin_check thin_dump thin_repair thin_restore thin_ls thin_delta thin_rmap thin_metadata_size
)

# --- installing

as_root() {
	if [[ $EUID -eq 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "must be root, or have sudo, to run: $*"
	fi
}
# Without the lock's descriptor: a service that a package starts would keep it.
apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" \
		>/dev/null 9>&-
}
updated=''
apt_update() {
	[[ ! $updated ]] || return 0
	updated=1
	local try
	for try in 1 2 3; do
		apt_get update && return
		say "apt-get update failed (attempt $try of 3)"
		sleep 10
	done
	return 1
}

install_missing() {
	local pair missing=() packages=()
	for pair in "${needed[@]}"; do
		command -v "${pair%:*}" >/dev/null || {
			missing+=("${pair%:*}")
			packages+=("${pair#*:}")
		}
	done
	if [[ $udev ]] && ! find_udevd >/dev/null; then
		missing+=(systemd-udevd)
		packages+=(udev)
	fi
	[[ ${#missing[@]} -gt 0 ]] || return 0
	if ! command -v apt-get >/dev/null; then
		die "missing commands: ${missing[*]} (Debian packages: ${packages[*]}); there is no apt-get to install them"
	fi
	mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
	say "installing ${packages[*]}"
	apt_update || true
	apt_get install -y --no-install-recommends --no-remove "${packages[@]}" || {
		say "apt wants to remove packages that are in the way; letting it"
		apt_get install -y --no-install-recommends "${packages[@]}" || die "could not install ${packages[*]}"
	}
	for pair in "${missing[@]}"; do
		[[ $pair = systemd-udevd ]] || command -v "$pair" >/dev/null || die "$pair is missing even after the installation"
	done
}

# What only makes a table longer is no reason to fail.
install_optional() {
	local pair
	for pair; do
		command -v "${pair%:*}" >/dev/null || {
			say "installing ${pair#*:}"
			apt_update || true
			apt_get install -y --no-install-recommends --no-remove "${pair#*:}" || say "could not install ${pair#*:}"
		}
	done
}

find_udevd() {
	local file
	for file in /usr/lib/systemd/systemd-udevd /lib/systemd/systemd-udevd; do
		[[ -x $file ]] && echo "$file" && return
	done
	return 1
}

# --- the guest's kernel: $cache/linux-image-…/

available_kernels() {
	# Newest first; of one version the signed package before the unsigned one, which holds the same kernel.
	apt-cache search --names-only "^linux-image-${kernel//./\\.}\\..*-cloud-amd64(-unsigned)?\$" |
		sed 's/ .*//; s/\(-unsigned\)\?$/ \1/' | sort -k1,1Vr -k2,2 | tr -d ' '
}

fetch_kernel() {
	local package=$1 tmp=$cache/tmp.$$
	[[ ! -d $cache/$package ]] || return 0
	say "fetching $package"
	rm -rf "$tmp" && mkdir "$tmp"
	(cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2) || return 1
	dpkg-deb -x "$tmp"/*.deb "$tmp/x"
	mv -T "$tmp/x" "$cache/$package"
	rm -rf "$tmp"
}

choose_kernel() {
	local package candidates
	if command -v apt-cache >/dev/null; then
		while :; do
			candidates=$(available_kernels)
			for package in $(head -n 2 <<<"$candidates"); do
				if fetch_kernel "$package"; then
					kernel_dir=$cache/$package
					return
				fi
			done
			[[ ! $updated ]] || break
			say "no kernel $kernel from apt yet; updating its lists"
			apt_update || break
		done
	fi
	package=$(find "$cache" -maxdepth 1 -name "linux-image-$kernel.*" -printf '%f\n' | sort -V | tail -n 1)
	[[ $package ]] ||
		die "no kernel $kernel to be had: apt offers no linux-image-$kernel.*-cloud-amd64${candidates:+ that can be downloaded}"
	say "apt has no kernel $kernel now; using $package from an earlier run"
	kernel_dir=$cache/$package
}

# --- the guest's root: $cache/root-KEY/{initrd,tools}

# Directories are resolved, so that an archive never holds a directory where the guest has a link (/lib -> usr/lib).
put() {
	local tree=$1 file=$2 dir
	dir=$(realpath -- "$(dirname -- "$file")")
	[[ ! -e $tree$dir/${file##*/} ]] || return 0
	mkdir -p "$tree$dir"
	cp -L -- "$file" "$tree$dir/"
}
put_libraries() {
	local library listing unresolved
	listing=$(ldd "$2" 2>/dev/null) || return 0 # static, or a script
	unresolved=$(sed -n 's/^\t\(.*\) => not found$/\1/p' <<<"$listing")
	[[ ! $unresolved ]] || die "$2 needs shared libraries that are not here: $unresolved"
	while IFS= read -r library; do
		put "$1" "$library"
	done < <(sed -n 's/^\t\(.* => \)\?\(\/.*\) (0x[0-9a-f]*)$/\2/p' <<<"$listing")
}
archive() { (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio -0 -o -H newc --quiet -R 0:0); }

build_root() {
	local tmp=$cache/tmp.$$ tree=$cache/tmp.$$/tree file name
	rm -rf "$tmp" && mkdir -p "$tree"
	mkdir -p "$tree"/{dev,etc,mnt,proc,run,sys,tmp,var/lib,payload,usr/{bin,sbin,lib,lib64}} "$tree/lib/modules"
	mkdir -m 700 "$tree/root"
	for name in bin sbin lib lib64; do
		if [[ -L /$name ]]; then
			rm -rf "${tree:?}/$name"
			ln -s "usr/$name" "$tree/$name"
		else
			mkdir -p "$tree/$name"
		fi
	done
	ln -s ../run "$tree/var/run"
	ln -s ../proc/self/mounts "$tree/etc/mtab"
	cp "$here/init" "$tree/init" && chmod 755 "$tree/init"
	for name in /etc/mke2fs.conf /etc/ld.so.cache /etc/group; do
		[[ ! -e $name ]] || cp -L "$name" "$tree/etc/"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
	echo '127.0.0.1 localhost dm-thin' >"$tree/etc/hosts"
	: >"$tree/etc/fstab"

	for name in "${guest_tools[@]}"; do
		file=$(command -v "$name") || die "$name is missing on this machine"
		put "$tree" "$file"
		put_libraries "$tree" "$file"
	done
	file=$(command -v busybox)
	put_libraries "$tree" "$file"
	cp -L "$file" "$tree/bin/busybox"
	for name in $(busybox --list); do
		[[ -e $tree/bin/$name || -e $tree/sbin/$name || -e $tree/usr/bin/$name || -e $tree/usr/sbin/$name ]] ||
			ln -s /bin/busybox "$tree/bin/$name"
	done
	[[ -e $tree/sbin/modprobe ]] || ln -s "$(command -v modprobe)" "$tree/sbin/modprobe"
	if file=$(find_udevd) && command -v udevadm >/dev/null; then
		put_udev "$tree" "$file"
	elif [[ $udev ]]; then
		die "systemd-udevd or udevadm is missing on this machine"
	fi
	put_modules "$tree"

	(cd "$tree" && find bin/ sbin/ usr/bin/ usr/sbin/ ! -type d -printf '%f\n') | sort -u >"$tmp/tools"
	archive "$tree" >"$tmp/initrd"
	rm -rf "$tree"
	mv -T "$tmp" "$1"
}

put_udev() {
	local tree=$1 file
	put "$tree" "$2"
	put "$tree" "$(command -v udevadm)"
	put_libraries "$tree" "$2"
	put_libraries "$tree" "$(command -v udevadm)"
	[[ -e $tree/sbin/systemd-udevd ]] || ln -s "$2" "$tree/sbin/systemd-udevd"
	# Programs that rules run (ata_id, …) lie beside them.
	while IFS= read -r file; do
		[[ ! -f $file ]] || put "$tree" "$file"
	done < <(dpkg-query -L udev dmsetup | grep -E '^(/usr)?/lib/udev/(rules\.d/.*\.rules|[a-z_0-9]+)$')
}

put_modules() {
	local tree=$1 release from to name file
	release=$(ls "$kernel_dir/lib/modules")
	from=$kernel_dir/lib/modules/$release to=$tree/lib/modules/$release
	[[ -e $from/modules.dep ]] || depmod -b "$kernel_dir" "$release"
	mkdir -p "$to"
	cp "$from"/modules.{builtin,builtin.modinfo,order} "$to/"
	for name in "${drivers[@]}" "${modules[@]}" "${optional[@]}"; do
		modprobe -d "$kernel_dir" -S "$release" --show-depends "$name" 2>/dev/null || true
	done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while IFS= read -r file; do
		name=${file#*/lib/modules/"$release"/}
		mkdir -p "$to/${name%/*}"
		case $file in
		*.xz) xz -dc "$file" >"$to/${name%.xz}" ;;
		*) cp "$file" "$to/$name" ;;
		esac
	done
	depmod -b "$tree" "$release"
}

