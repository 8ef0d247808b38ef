package containerd

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/testutil"
)

// TestPoolGrows writes more than the pool has at first, while the snapshotter runs.
func TestPoolGrows(t *testing.T) {
	testutil.RequiresRoot(t)
	t.Setenv("DM_THIN_SNAPSHOTTER_ARGS", "--data-size 128M --max-data-size 1G --base-size 1G --deactivate-on-exit --log info")
	directory := t.TempDir()
	root, target := filepath.Join(directory, "root"), filepath.Join(directory, "target")
	for _, path := range []string{root, target} {
		if err := os.Mkdir(path, 0700); err != nil {
			t.Fatal(err)
		}
	}
	ctx := namespaces.WithNamespace(context.Background(), "grow")
	snapshotter, end, err := startDmThin(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := snapshotter.Prepare(ctx, "large", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.All(mounts, target); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 1<<20)
	for index := range piece {
		piece[index] = byte(index)
	}
	for written := 0; written < 300; written++ {
		if _, err := file.Write(piece); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			t.Fatalf("after %d MiB: %v", written, err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mount.UnmountAll(target, 0); err != nil {
		t.Fatal(err)
	}
	// There is room for more.
	if _, err := snapshotter.Prepare(ctx, "more", ""); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
}
