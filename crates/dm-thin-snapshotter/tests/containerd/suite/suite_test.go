// containerd's own test suite of snapshotters, over the socket of a snapshotter: dm-thin-snapshotter as a process of its own,
// and containerd's devmapper, which is a part of this process. The times of both are printed at the end.
//
// DM_THIN_SNAPSHOTTER is the program, DM_THIN_SNAPSHOTTER_ARGS are arguments beside --root and --address. DM_THIN_CYCLES is the
// number of rounds of TestCycles.
package containerd

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/devmapper"
	"github.com/containerd/containerd/snapshots/devmapper/dmsetup"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

// The pool of devmapper, as run has it for dm-thin-snapshotter. The block size is that of containerd's own tests.
const (
	dataSize     = 2 << 30
	metadataSize = 16 << 20
	baseSize     = "16MB"
	blockSectors = 128
)

// peer is a snapshotter that is compared.
type peer struct {
	name  string
	start testsuite.SnapshotterFunc
}

var peers = []peer{{"dm-thin", startDmThin}, {"devmapper", startDevmapper}}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	report()
	os.Exit(code)
}

// TestSuite runs the suites of all peers in turns: the load of the machine is the same for all.
func TestSuite(t *testing.T) {
	testutil.RequiresRoot(t)
	turns := newTurns()
	// The suite changes the umask and restores it, before its parallel tests begin.
	var starting sync.Mutex
	for _, peer := range peers {
		peer, times := peer, newTimes("suite", peer.name)
		t.Run(peer.name, func(t *testing.T) {
			t.Parallel()
			starting.Lock()
			defer starting.Unlock()
			testsuite.SnapshotterSuite(t, peer.name, times.measure(peer.start, turns))
		})
	}
}

// connect returns a client of a socket.
func connect(ctx context.Context, socket string) (*grpc.ClientConn, snapshots.Snapshotter, error) {
	// A server that has ended does not answer.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := grpc.DialContext(ctx, "unix://"+socket, grpc.WithInsecure(), grpc.WithBlock())
	if err != nil {
		return nil, nil, err
	}
	return client, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client), "test"), nil
}

// startDmThin runs dm-thin-snapshotter on an empty directory, and returns a client and what ends both.
func startDmThin(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	// The suite of the other peer may have cleared the umask when the root was made.
	if err := os.Chmod(root, 0755); err != nil {
		return nil, nil, err
	}
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
	client, snapshotter, err := connect(ctx, socket)
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
	return snapshotter, end, nil
}

// startDevmapper serves containerd's devmapper on a new pool in two loop files, and returns a client and what removes it all.
func startDevmapper(ctx context.Context, root string) (_ snapshots.Snapshotter, _ func() error, err error) {
	var ends []func() error
	end := func() error {
		var first error
		for number := len(ends) - 1; number >= 0; number-- {
			if err := ends[number](); err != nil && first == nil {
				first = err
			}
		}
		ends = nil
		return first
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	var devices []string
	for _, file := range []struct {
		name string
		size int64
	}{{"data", dataSize}, {"metadata", metadataSize}} {
		path := filepath.Join(root, file.name)
		if err := os.WriteFile(path, nil, 0600); err != nil {
			return nil, nil, err
		}
		if err := os.Truncate(path, file.size); err != nil {
			return nil, nil, err
		}
		device, err := mount.AttachLoopDevice(path)
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, func() error { return mount.DetachLoopDevice(device) })
		devices = append(devices, device)
	}
	pool := fmt.Sprintf("devmapper-%d", time.Now().UnixNano())
	if err := dmsetup.CreatePool(pool, devices[0], devices[1], blockSectors); err != nil {
		return nil, nil, err
	}
	ends = append(ends, func() error { return removePool(pool) })
	backend, err := devmapper.NewSnapshotter(ctx, &devmapper.Config{RootPath: root, PoolName: pool, BaseImageSize: baseSize})
	if err != nil {
		return nil, nil, err
	}
	ends = append(ends, backend.Close)

	socket := filepath.Join(filepath.Dir(root), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(backend))
	go server.Serve(listener)
	ends = append(ends, func() error { server.Stop(); return nil })
	client, snapshotter, err := connect(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	ends = append(ends, client.Close)
	return snapshotter, end, nil
}

// removePool deactivates a pool and the devices on it.
func removePool(pool string) error {
	nodes, err := filepath.Glob(dmsetup.DevMapperDir + pool + "-snap-*")
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := dmsetup.RemoveDevice(filepath.Base(node), dmsetup.RemoveWithRetries); err != nil {
			return err
		}
	}
	return dmsetup.RemoveDevice(pool, dmsetup.RemoveWithRetries)
}
