package integration

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

const oneNode = `
apiVersion: v1
kind: Node
metadata: {name: one}
spec: {podCIDRs: [10.1.0.0/24]}
`

// TestAgentThatCannotDoItsJob: the process ends with a status that is not zero and one sentence that says what to do.
func TestAgentThatCannotDoItsJob(t *testing.T) {
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.yaml"), []byte(oneNode), 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(unreachable), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		before func(t *testing.T)
		attr   *syscall.SysProcAttr
		says   string
		status int
	}{
		{name: "unknown node", args: []string{"--node-name", "two", "--manifests", dir}, says: "--node-name", status: 1},
		{name: "no node name", args: []string{"--manifests", dir}, says: "--node-name", status: 1},
		{name: "no source", args: []string{"--node-name", "one"}, says: "give --kubeconfig or --manifests", status: 1},
		{
			name: "no directory", args: []string{"--node-name", "one", "--manifests", filepath.Join(dir, "none")},
			says: "--manifests", status: 1,
		},
		{
			name: "API server out of reach", says: "check the address and credentials of the API server", status: 1,
			args: []string{"--node-name", "one", "--kubeconfig", kubeconfig, "--start-timeout", "1s"},
		},
		{
			name: "mask too narrow", says: "needs at least 4", status: 1,
			args: []string{"--node-name", "one", "--manifests", dir, "--mark-mask", "0x3"},
		},
		{
			name: "mask used by others", says: "--mark-mask", status: 1, before: markSomePackets,
			args: []string{"--node-name", "one", "--manifests", dir},
		},
		{
			name: "no CAP_NET_ADMIN", says: "CAP_NET_ADMIN", status: 1,
			args: []string{"--node-name", "one", "--manifests", dir},
			// A user namespace of its own has all capabilities, but none over the network namespace that it is in.
			attr: &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			},
		},
		{
			name: "unknown flag", args: []string{"--node-name", "one", "--no-such-flag"}, says: "no-such-flag", status: 2,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			node, err := ns.New("node")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := node.Close(); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, append([]string{"agent"}, c.args...)...)
			var stderr bytes.Buffer
			cmd.Stderr, cmd.SysProcAttr = &stderr, c.attr
			cmd.WaitDelay = time.Second
			err = node.Do(func() error {
				if c.before != nil {
					c.before(t)
				}
				return cmd.Run()
			})
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.status {
				t.Fatalf("ended with %v, want status %d; it said:\n%s", err, c.status, &stderr)
			}
			if last := lastLine(stderr.String(), c.status); !strings.Contains(last, c.says) {
				t.Errorf("said %q, which does not tell of %q", last, c.says)
			}
		})
	}
}

// lastLine is the line with the error: the last one, before the hint to the usage if there is that.
func lastLine(s string, status int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if status == 2 && len(lines) > 1 {
		return lines[len(lines)-2]
	}
	return lines[len(lines)-1]
}

const unreachable = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// markSomePackets is another firewall in the namespace of the calling thread, which uses bits of the default mask.
func markSomePackets(t *testing.T) {
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Name: "mark", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: []byte{0, 0, 0, 0x10}}, // 0x10000000 on a little-endian machine
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
