package failure

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/queue"
)

// asBefore checks that policy is enforced as the test has set it, and goes on to be followed.
func (b *bed) asBefore() {
	b.t.Helper()
	b.reaches("friend", "server")
	b.denied("client", "server")
	b.apply(admitting("client"))
	b.reaches("client", "server")
	b.denied("friend", "server")
}

// TestOutOfFileDescriptors: the agent works for as long as it has those that it holds, and again with more.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	pid := b.agent().PID()
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	b.must(err)
	var before unix.Rlimit
	b.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	b.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)), Max: before.Max}, nil))
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.ApplyYAML(ctx, admitting("client"))) // cannot be brought into force: no socket can be opened
	time.Sleep(200 * time.Millisecond)
	if r := b.probe("bystander", "server", probe.TCP, 0); !r.Denied() {
		t.Errorf("forbidden by the old and the new policy: %v", r)
	}
	b.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	b.must(b.WaitApplied(ctx))
	b.reaches("client", "server")
	b.denied("friend", "server")
}

// TestFlowLogDiskFull: nothing but the log suffers.
func TestFlowLogDiskFull(t *testing.T) {
	t.Parallel()
	b := newBed(t, "--flow-log", "/dev/full")
	b.apply(admitting("friend"))
	b.denied("client", "server")
	eventually(t, "failed writes are counted", func() bool {
		return b.metrics().Sum("firstpacket_flow_log_write_errors_total") > 0
	})
	b.asBefore()
}

// TestFlowLogReaderStalls: a pipe whose reader has stopped reading blocks the writer of the log, and nobody else.
func TestFlowLogReaderStalls(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "flows")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	b := newBed(t, "--flow-log", fifo)
	b.apply(admitting("friend"))
	for port := uint16(1); port <= 60; port++ {
		_, err := b.Probe(t.Context(), probe.Probe{From: b.place("client").NS, To: b.place("server").At(false, 1000+port),
			Proto: probe.UDP, Wait: time.Millisecond})
		b.must(err)
	}
	b.asBefore()
}

// TestReusedAddresses: a pod takes over the address of another, which may still be listed.
func TestReusedAddresses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("client"))
	held := b.flow("client", "server", probe.TCP, false)
	a4, _ := b.place("client").Addr(false)
	a6, _ := b.place("client").Addr(true)
	// The old pod has ended; its object is still there, with its addresses.
	succeed := func(phase string) string {
		return strings.NewReplacer("V4", a4.String(), "V6", a6.String(), "PHASE", phase).Replace(
			`{apiVersion: v1, kind: Pod, metadata: {name: client, labels: {app: client}},
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}]}]},
status: {phase: PHASE, podIP: V4, podIPs: [{ip: V4}, {ip: V6}]}}`)
	}
	heir := strings.NewReplacer("name: client", "name: heir", "app: client", "app: stranger")
	b.apply(succeed("Succeeded") + "\n---\n" + heir.Replace(succeed("Running")))
	held.Wait = probe.DefaultWait
	if r := held.Exchange(); r.Outcome == probe.Reached {
		t.Errorf("the old pod's flow goes on in the name of the new one: %v", r)
	}
	b.denied("heir", "server")
	b.apply(admitting("stranger"))
	b.reaches("heir", "server")
}

// flood sends datagrams to ever new ports of the server, as fast as one thread can. It returns once there were enough,
// with what stops it.
func (b *bed) flood(from string, perSecond, enough int) (stop func()) {
	b.t.Helper()
	source, target := b.place(from).NS, b.place("server").At(false, 0).Addr()
	done, ended := make(chan struct{}), make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(ended)
		_ = source.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			began := time.Now()
			for n := 0; ; n++ {
				select {
				case <-done:
					return nil
				default:
				}
				sent.Store(int64(n))
				_ = unix.Sendto(fd, []byte("?"), 0, &unix.SockaddrInet4{Addr: target.As4(), Port: 1000 + n%60000})
				if ahead := time.Duration(n)*time.Second/time.Duration(perSecond) - time.Since(began); ahead > time.Millisecond {
					time.Sleep(ahead)
				}
			}
		})
	}()
	stop = sync.OnceFunc(func() { close(done); <-ended })
	b.t.Cleanup(stop)
	eventually(b.t, "enough packets are sent", func() bool { return sent.Load() >= int64(enough) })
	return stop
}

// TestQueueOverflow: the agent stands still until its queues are full.
func TestQueueOverflow(t *testing.T) {
	t.Parallel()
	b := newBed(t, "--queues", "1")
	b.apply(admitting("friend"))
	held := b.flow("friend", "server", probe.TCP, false)
	b.must(unix.Kill(b.agent().PID(), unix.SIGSTOP))
	stop := b.flood("client", 50_000, 2*queue.DefaultMaxLen)
	if r := held.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("established flow: %v", r)
	}
	b.denied("client", "server")
	stop()
	b.must(unix.Kill(b.agent().PID(), unix.SIGCONT))
	if n := b.metrics().Sum("firstpacket_queue_dropped_packets_total"); n == 0 {
		t.Error("no packet found the queue full")
	}
	b.asBefore()
}

// TestFailOpen: by choice, new connections pass while no agent is there to judge them.
func TestFailOpen(t *testing.T) {
	t.Parallel()
	b := newBedOf(t, cluster, lab.Options{AgentArgs: []string{"--fail-open"}})
	b.apply(admitting("friend"))
	b.denied("client", "server")
	b.must(b.Kill("one"))
	eventually(t, "the denied tuple is forgotten and the connection passes", func() bool {
		return b.probe("client", "server", probe.TCP, 0).Outcome == probe.Reached
	})
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.Start(ctx, "one"))
	b.asBefore()
}
