package lab_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

func withStandIns(t *testing.T) *lab.Lab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return newLab(t, small, lab.Options{AgentBinary: self, AgentEnv: []string{roleEnv + "=agent"}})
}

func TestAgentsComeAndGo(t *testing.T) {
	l := withStandIns(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, wait := range []func(context.Context) error{l.WaitReady, l.WaitApplied} {
		if err := wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.ApplyYAML(ctx, `{apiVersion: v1, kind: Namespace, metadata: {name: other}}`); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitApplied(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := l.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Sum("firstpacket_queue_packets_total"); got != 14 {
		t.Errorf("packets of both agents: %v, want 14", got)
	}
	if got := m.Sum("firstpacket_queue_packets_total", `queue="1"`); got != 8 {
		t.Errorf("packets of queue 1: %v, want 8", got)
	}
	if got := m.Quantile("h", 0.5); math.Abs(got-0.15) > 1e-9 {
		t.Errorf("median: %v, want 0.15", got)
	}
	records := l.Denied()
	if len(records) != 2 || records[0].Node != "one" || records[1].Node != "two" || records[0].Dst.Port != 80 {
		t.Errorf("denied flows: %+v", records)
	}

	before := l.Agent("one").PID()
	if err := l.Kill("one"); err != nil {
		t.Fatal(err)
	}
	if l.Agent("one").Running() || !l.Agent("two").Running() {
		t.Error("want the agent of one ended and that of two running")
	}
	if err := l.Start(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if after := l.Agent("one").PID(); after == before {
		t.Error("the agent was not started again")
	}
	if err := l.Stop(ctx, "two"); err == nil || !strings.Contains(err.Error(), "agent of two") {
		t.Errorf("a stand-in ends by the signal: got %v, want that told", err)
	}
	if err := l.Kill("three"); err == nil {
		t.Error("a node that is not there has an agent")
	}
}

func TestAgentThatCannotStart(t *testing.T) {
	l := newLab(t, small, lab.Options{AgentBinary: "/bin/false"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The end may be seen before anyone waits, and an agent that does not run is not waited for.
	for _, a := range l.Agents() {
		if err := a.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("got %v, want its end told", err)
		}
	}
}

// victim is a lab with agents that tells their process numbers and waits to be killed.
func victim() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	objects, err := topology.Parse("victim", []byte(small))
	if err != nil {
		return err
	}
	l, err := lab.New(context.Background(), objects, lab.Options{
		Dir: os.Getenv("LAB_TEST_DIR"), AgentBinary: self, AgentEnv: []string{roleEnv + "=agent"},
	})
	if err != nil {
		return err
	}
	if err := l.WaitReady(context.Background()); err != nil {
		return err
	}
	var pids []int
	for _, a := range l.Agents() {
		pids = append(pids, a.PID())
	}
	if err := json.NewEncoder(os.Stdout).Encode(pids); err != nil {
		return err
	}
	select {}
}

// TestNothingIsLeftAfterAKill kills a process with a lab and looks for its agents and its namespaces. Namespaces
// without names are watched through the ids that this process's own namespace has for them: the kernel forgets an id
// when the namespace is taken apart.
func TestNothingIsLeftAfterAKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleEnv+"=victim", "LAB_TEST_DIR="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	reader := bufio.NewReader(out)
	said, err := reader.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	if err := json.Unmarshal(said, &pids); err != nil || len(pids) != 2 {
		t.Fatalf("the victim said %q: %v", said, err)
	}

	// The switch, two nodes and three pods with a network of their own.
	if got, want := watchNamespaces(t, cmd.Process.Pid), 6; got != want {
		t.Errorf("the lab has %d namespaces, want %d", got, want)
	}
	if len(namespaceIDs(t)) < 6 {
		t.Fatal("the lab's namespaces have no ids; the test would prove nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, reader)
	_ = cmd.Wait()

	eventually(t, "agents are gone", func() bool {
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(stat), ") Z ") {
				return false
			}
		}
		return true
	})
	eventually(t, "namespaces are gone", func() bool { return len(namespaceIDs(t)) == 0 })
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// watchNamespaces gives ids to the network namespaces that the process holds open, and returns how many there are
// besides its own.
func watchNamespaces(t *testing.T, pid int) int {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{own: true}
	for _, path := range fds {
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, "net:[") || seen[target] {
			continue
		}
		seen[target] = true
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := vnetlink.SetNetNsIdByFd(int(f.Fd()), 1000+len(seen)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return len(seen) - 1
}

// namespaceIDs lists the ids of other namespaces that this one knows (RTM_GETNSID, linux/net_namespace.h).
func namespaceIDs(t *testing.T) []netlink.Message {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNSID, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, 4), // struct rtgenmsg, padded
	})
	if err != nil {
		t.Fatal(err)
	}
	return messages
}
