// containerd's own test suite of snapshotters, over the socket of a snapshotter that is a process of its own.
//
// DM_THIN_SNAPSHOTTER is the program, DM_THIN_SNAPSHOTTER_ARGS are arguments beside --root and --address.
package containerd

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}

// start runs the snapshotter on an empty directory, and returns a client and what ends both.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(filepath.Dir(root), "socket")
	args := append([]string{"--root", root, "--address", socket}, strings.Fields(os.Getenv("DM_THIN_SNAPSHOTTER_ARGS"))...)
	server := exec.Command(os.Getenv("DM_THIN_SNAPSHOTTER"), args...)
	server.Stdout, server.Stderr = os.Stderr, os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	// The socket is there before the tree is open; the first call waits.
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		} else if time.Since(begun) > time.Minute {
			return nil, nil, fmt.Errorf("no socket: %w", err)
		}
	}
	client, err := grpc.DialContext(ctx, "unix://"+socket, grpc.WithInsecure(), grpc.WithBlock())
	if err != nil {
		return nil, nil, err
	}
	end := func() error {
		client.Close()
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return server.Wait()
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client), "dm-thin"), end, nil
}

func TestSuite(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "dm-thin", start)
}
