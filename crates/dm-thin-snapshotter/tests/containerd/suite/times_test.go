// What the calls of a snapshotter take, beside the other one's.
package containerd

import (
	"context"
	"fmt"
	"os"
	"sort"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/testsuite"
)

// times are the durations of one peer in one of the tests here, by what was done.
type times struct {
	test, peer string
	// In the order of the first of each.
	kinds []string
	each  map[string][]time.Duration
	// Of a suite, while it was its turn.
	total time.Duration
}

var all []*times

func newTimes(test, peer string) *times {
	times := &times{test: test, peer: peer, each: map[string][]time.Duration{}}
	all = append(all, times)
	return times
}

func (t *times) add(kind string, elapsed time.Duration) {
	if _, ok := t.each[kind]; !ok {
		t.kinds = append(t.kinds, kind)
	}
	t.each[kind] = append(t.each[kind], elapsed)
}

func (t *times) since(kind string, begun time.Time) { t.add(kind, time.Since(begun)) }

// do measures a step.
func (t *times) do(kind string, step func() error) error {
	defer t.since(kind, time.Now())
	return step()
}

// turns lets one peer run at a time, and one test of each peer.
type turns struct {
	turn chan struct{}
	mu   sync.Mutex
	own  map[*times]*sync.Mutex
}

func newTurns() *turns {
	turns := &turns{turn: make(chan struct{}, 1), own: map[*times]*sync.Mutex{}}
	turns.turn <- struct{}{}
	return turns
}

func (t *turns) of(times *times) *sync.Mutex {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.own[times] == nil {
		t.own[times] = &sync.Mutex{}
	}
	return t.own[times]
}

// turn of a test, from its start to its end.
type turn struct {
	turns *turns
	times *times
	begun time.Time
}

func (t *turns) begin(times *times) *turn {
	t.of(times).Lock()
	turn := &turn{turns: t, times: times}
	turn.take()
	return turn
}

func (t *turn) take() {
	<-t.turns.turn
	t.begun = time.Now()
}

func (t *turn) give() {
	t.times.total += time.Since(t.begun)
	t.turns.turn <- struct{}{}
}

// next lets the others run, if they wait: who waits longest is first.
func (t *turn) next() {
	if t != nil {
		t.give()
		t.take()
	}
}

func (t *turn) end() {
	t.give()
	t.turns.of(t.times).Unlock()
}

// measure has the start, the end and each call measured. It is another peer's turn at each new snapshot.
func (t *times) measure(start testsuite.SnapshotterFunc, turns *turns) testsuite.SnapshotterFunc {
	return func(ctx context.Context, root string) (_ snapshots.Snapshotter, _ func() error, err error) {
		turn := turns.begin(t)
		defer func() {
			if err != nil {
				turn.end()
			}
		}()
		begun := time.Now()
		snapshotter, end, err := start(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		// A server that opens its pool answers the first call when it is open.
		if _, err := snapshotter.Stat(ctx, "none"); !errdefs.IsNotFound(err) {
			end()
			return nil, nil, fmt.Errorf("a snapshot that is not there: %v", err)
		}
		t.since("start", begun)
		endTurn := func() error {
			defer turn.end()
			return t.do("end", end)
		}
		return measured{snapshotter, t, turn}, endTurn, nil
	}
}

// measured is a snapshotter whose calls are measured.
type measured struct {
	inner snapshots.Snapshotter
	times *times
	turn  *turn
}

func (m measured) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	defer m.times.since("Stat", time.Now())
	return m.inner.Stat(ctx, key)
}

func (m measured) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	defer m.times.since("Update", time.Now())
	return m.inner.Update(ctx, info, paths...)
}

func (m measured) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	defer m.times.since("Usage", time.Now())
	return m.inner.Usage(ctx, key)
}

func (m measured) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	defer m.times.since("Mounts", time.Now())
	return m.inner.Mounts(ctx, key)
}

func (m measured) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	// A base is a call of its own kind: devmapper makes a file system for it.
	kind := "Prepare"
	if parent == "" {
		kind = "Prepare base"
	}
	m.turn.next()
	defer m.times.since(kind, time.Now())
	return m.inner.Prepare(ctx, key, parent, opts...)
}

func (m measured) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	m.turn.next()
	defer m.times.since("View", time.Now())
	return m.inner.View(ctx, key, parent, opts...)
}

func (m measured) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	defer m.times.since("Commit", time.Now())
	return m.inner.Commit(ctx, name, key, opts...)
}

func (m measured) Remove(ctx context.Context, key string) error {
	defer m.times.since("Remove", time.Now())
	return m.inner.Remove(ctx, key)
}

// Walk without what its caller does with each.
func (m measured) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	begun, theirs := time.Now(), time.Duration(0)
	err := m.inner.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		begun := time.Now()
		err := fn(ctx, info)
		theirs += time.Since(begun)
		return err
	}, filters...)
	m.times.add("Walk", time.Since(begun)-theirs)
	return err
}

func (m measured) Cleanup(ctx context.Context) error {
	defer m.times.since("Cleanup", time.Now())
	return m.inner.(snapshots.Cleaner).Cleanup(ctx)
}

func (m measured) Close() error { return m.inner.Close() }

// summary of the durations of a kind.
type summary struct {
	count         int
	sum, p50, p99 time.Duration
}

func summarize(each []time.Duration) summary {
	sorted := append([]time.Duration(nil), each...)
	sort.Slice(sorted, func(a, b int) bool { return sorted[a] < sorted[b] })
	result := summary{count: len(sorted)}
	for _, elapsed := range sorted {
		result.sum += elapsed
	}
	if result.count > 0 {
		result.p50, result.p99 = sorted[(result.count-1)*50/100], sorted[(result.count-1)*99/100]
	}
	return result
}

func ratio(a, b time.Duration) string {
	if a == 0 || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(a)/float64(b))
}

// isCall tells calls of a snapshotter from what is done beside them.
func isCall(kind string) bool { return kind[0] >= 'A' && kind[0] <= 'Z' }

// report prints the times of each test: those of the first peer beside those of the others.
func report() {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer out.Flush()
	ms := func(elapsed time.Duration) string { return fmt.Sprintf("%.1f ms", float64(elapsed)/1e6) }
	s := func(elapsed time.Duration) string { return fmt.Sprintf("%.1f s", elapsed.Seconds()) }
	for at := 0; at+1 < len(all); at += 2 {
		a, b := all[at], all[at+1]
		kinds := append([]string(nil), a.kinds...)
		for _, kind := range b.kinds {
			if _, ok := a.each[kind]; !ok {
				kinds = append(kinds, kind)
			}
		}
		if len(kinds) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s\t%s\tn\tp50\tp99\t%s\tn\tp50\tp99\tratio p50\tratio p99\tratio of sums\t\n", a.test, a.peer, b.peer)
		var calls [2]time.Duration
		line := func(kind string) {
			x, y := summarize(a.each[kind]), summarize(b.each[kind])
			fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t\n", kind, s(x.sum), x.count, ms(x.p50), ms(x.p99),
				s(y.sum), y.count, ms(y.p50), ms(y.p99), ratio(x.p50, y.p50), ratio(x.p99, y.p99), ratio(x.sum, y.sum))
			if isCall(kind) {
				calls[0] += x.sum
				calls[1] += y.sum
			}
		}
		for _, kind := range kinds {
			line(kind)
		}
		sums := func(kind string, x, y time.Duration) {
			fmt.Fprintf(out, "%s\t%s\t\t\t\t%s\t\t\t\t\t\t%s\t\n", kind, s(x), s(y), ratio(x, y))
		}
		sums("all calls", calls[0], calls[1])
		if a.total > 0 && b.total > 0 {
			rest := func(t *times, calls time.Duration) time.Duration {
				return t.total - calls - summarize(t.each["start"]).sum - summarize(t.each["end"]).sum
			}
			// Mounts, files, comparisons and the suite's own sleeps.
			sums("the suite's own", rest(a, calls[0]), rest(b, calls[1]))
			sums("total", a.total, b.total)
		}
	}
}
