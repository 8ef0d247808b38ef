# shellcheck shell=bash disable=SC2154
# Sourced by container and kills: what the guest's disk contains.

# Puts the snapshotter, containerd, runc, busybox and images into $work/files. Each image is of two layers, of which the first
# one is common to all: docker.io/local/bb:1, … in bb-1.tar, ….
#
#   prepare_files IMAGES
#
# Uses work, and cargo's target in target. Fetches Debian's packages with apt-get; nothing is installed.
prepare_files() {
	local cache package applet
	cache=$(realpath -m "$target/containerd-debs")
	cargo build --locked -p dm-thin-snapshotter
	mkdir -p "$cache" "$work/files/root" "$work/layer/bin"
	ls "$cache"/containerd_*.deb >/dev/null 2>&1 ||
		(cd "$cache" && apt-get download containerd runc libseccomp2 busybox-static)
	for package in "$cache"/*.deb; do dpkg-deb -x "$package" "$work/files/root"; done
	cp "$target/debug/dm-thin-snapshotter" "$work/files/"

	cp "$work/files/root/bin/busybox" "$work/layer/bin/busybox"
	for applet in sh cat mount df grep sleep; do ln -s busybox "$work/layer/bin/$applet"; done
	# docker's archive format.
	python3 - "$work" "$1" <<'END'
import hashlib, io, json, sys, tarfile
work, images = sys.argv[1], int(sys.argv[2])

def digest(path):
    return "sha256:" + hashlib.sha256(open(path, "rb").read()).hexdigest()

with tarfile.open(f"{work}/layer1.tar", "w") as tar:
    tar.add(f"{work}/layer", arcname=".")
for image in range(1, images + 1):
    text = b"two\n" if image == 1 else b"two of %d\n" % image
    with tarfile.open(f"{work}/layer2.tar", "w") as tar:
        entry = tarfile.TarInfo("etc")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
        entry = tarfile.TarInfo("etc/layer")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    layers = [digest(f"{work}/layer{number}.tar") for number in (1, 2)]
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
              "rootfs": {"type": "layers", "diff_ids": layers}}
    manifest = [{"Config": "config.json", "RepoTags": [f"local/bb:{image}"], "Layers": ["layer1.tar", "layer2.tar"]}]
    for name, value in [("config.json", config), ("manifest.json", manifest)]:
        json.dump(value, open(f"{work}/{name}", "w"))
    with tarfile.open(f"{work}/files/bb-{image}.tar", "w") as tar:
        for name in ["manifest.json", "config.json", "layer1.tar", "layer2.tar"]:
            tar.add(f"{work}/{name}", arcname=name)
END
}
