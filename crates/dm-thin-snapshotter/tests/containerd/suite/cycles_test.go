package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"golang.org/x/sys/unix"
)

// bench is a peer with a committed layer.
type bench struct {
	snapshots.Snapshotter
	times  *times
	target string
}

const layer = "layer"

func newBench(ctx context.Context, t *testing.T, test string, peer peer) *bench {
	directory := t.TempDir()
	root, target := filepath.Join(directory, "root"), filepath.Join(directory, "target")
	for _, path := range []string{root, target} {
		if err := os.Mkdir(path, 0700); err != nil {
			t.Fatal(err)
		}
	}
	snapshotter, end, err := peer.start(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Errorf("%s: %v", peer.name, err)
		}
	})
	times := newTimes(test, peer.name)
	b := &bench{measured{snapshotter, times, nil}, times, target}
	if err := b.cycle(ctx, layer, "", nil); err != nil {
		t.Fatalf("%s: %v", peer.name, err)
	}
	// Not what is measured.
	times.kinds, times.each = nil, map[string][]time.Duration{}
	return b
}

// cycle makes a layer as an import does: a snapshot, mounted, written to, unmounted and committed.
func (b *bench) cycle(ctx context.Context, name, parent string, then func() error) error {
	mounts, err := b.Prepare(ctx, name+"-active", parent)
	if err != nil {
		return err
	}
	if err := b.times.do("mount", func() error { return mount.All(mounts, b.target) }); err != nil {
		return err
	}
	write := func() error {
		for number := 0; number < 10; number++ {
			text := []byte(strings.Repeat(name, 1000))
			if err := os.WriteFile(filepath.Join(b.target, fmt.Sprintf("%d", number)), text, 0600); err != nil {
				return err
			}
		}
		return nil
	}
	if err := b.times.do("write", write); err != nil {
		return err
	}
	if err := b.times.do("unmount", func() error { return mount.UnmountAll(b.target, 0) }); err != nil {
		return err
	}
	if err := b.Commit(ctx, name, name+"-active"); err != nil {
		return err
	}
	if then == nil {
		return nil
	}
	return then()
}

// cycleAndRemove removes the layer, too. What a peer leaves for later is done in Cleanup, so that it takes no time of others.
func (b *bench) cycleAndRemove(ctx context.Context, name string) error {
	return b.cycle(ctx, name, layer, func() error {
		if err := b.Remove(ctx, name); err != nil {
			return err
		}
		return b.Snapshotter.(snapshots.Cleaner).Cleanup(ctx)
	})
}

// TestCycles makes and removes layers, now of one peer and now of the other.
func TestCycles(t *testing.T) {
	testutil.RequiresRoot(t)
	count, err := strconv.Atoi(os.Getenv("DM_THIN_CYCLES"))
	if err != nil {
		count = 100
	}
	ctx := namespaces.WithNamespace(context.Background(), "cycles")
	var benches []*bench
	for _, peer := range peers {
		benches = append(benches, newBench(ctx, t, "cycles", peer))
	}
	for number := 0; number < count; number++ {
		for turn := range benches {
			// Each is the first one in every second round.
			b := benches[(number+turn)%len(benches)]
			if err := b.cycleAndRemove(ctx, fmt.Sprintf("layer-%d", number)); err != nil {
				t.Fatalf("%s: %v", b.times.peer, err)
			}
		}
	}
}

// flushes returns how many flushes the disk below a directory has done: Documentation/block/stat.rst.
func flushes(t *testing.T, directory string) int {
	var stat unix.Stat_t
	if err := unix.Stat(directory, &stat); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
	if err != nil {
		t.Fatal(err)
	}
	count, err := strconv.Atoi(strings.Fields(string(text))[15])
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestProcesses counts the programs that a cycle starts, and the flushes of the disk.
func TestProcesses(t *testing.T) {
	testutil.RequiresRoot(t)
	const count = 5
	directory := t.TempDir()
	log := filepath.Join(directory, "log")
	path := os.Getenv("PATH")
	for _, name := range []string{
		"dmsetup", "mkfs.ext4", "mke2fs", "mkfs.xfs", "resize2fs", "e2fsck", "blkdiscard", "blkid", "losetup", "mount", "umount",
		"thin_check", "thin_dump", "thin_delta", "thin_ls",
	} {
		script := fmt.Sprintf("#!/bin/sh\necho %s \"$1\" >>%s\nPATH=%s exec %s \"$@\"\n", name, log, path, name)
		if err := os.WriteFile(filepath.Join(directory, name), []byte(script), 0700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", directory+":"+path)
	ctx := namespaces.WithNamespace(context.Background(), "processes")
	for _, peer := range peers {
		b := newBench(ctx, t, "", peer)
		if err := os.WriteFile(log, nil, 0600); err != nil {
			t.Fatal(err)
		}
		before := flushes(t, directory)
		for number := 0; number < count; number++ {
			if err := b.cycleAndRemove(ctx, fmt.Sprintf("layer-%d", number)); err != nil {
				t.Fatalf("%s: %v", peer.name, err)
			}
		}
		flushed := flushes(t, directory) - before
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
			if line != "" {
				counts[line]++
			}
		}
		t.Logf("%s: %d programs and %d flushes of the disk in %d cycles of Prepare, Commit and Remove: %v", peer.name,
			strings.Count(string(text), "\n"), flushed, count, counts)
		b.times.kinds = nil
	}
}
