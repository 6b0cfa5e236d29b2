package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/bench/baseline"
	"github.com/firstpacket/firstpacket/bench/feed"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/world"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// contender is what stands between client and server at a site.
type contender struct {
	name string
	*site
	// process judges packets in userspace; 0 for none.
	process int
	// queued counts the packets that userspace was asked about, since any time; nil without a queue.
	queued func() (uint64, error)
	agent  *firewall
	// next is the number of the first tuple that nobody has used here.
	next int
}

// as is the same contender under another name, for comparisons with itself.
func (c *contender) as(name string) *contender {
	other := *c
	other.name = name
	return &other
}

// firewall is a firstpacket agent and the cluster it sees.
type firewall struct {
	*agents.Agent
	feed  *feed.Feed
	rules *ruleset.Ruleset
}

// workerReady is the line by which a baseline's process says that it serves the queue.
const workerReady = "ready"

// Roles of the baselines' processes, beside those of package load.
const (
	RoleRaw      = "raw"
	RoleCallback = "callback"
)

// open makes a site with nothing in between.
func (s *Suite) open(name string) (*contender, error) {
	place, err := newSite(s.starter, s.cfg.Worker)
	if err != nil {
		return nil, fmt.Errorf("make the site of %s: %w", name, err)
	}
	return &contender{name: name, site: place}, nil
}

// openStatic has rules that let the tuples pass, and nothing else.
func (s *Suite) openStatic(name string, tuples []ruleset.Tuple, reject bool) (*contender, error) {
	return s.with(name, func(c *contender) error { return baseline.Static(c.node.NS(), tuples, reject) })
}

// openChains has one chain for each policy.
func (s *Suite) openChains(policies int) (*contender, error) {
	return s.with(chainsName(policies), func(c *contender) error {
		return baseline.Chains(c.node.NS(), world.ClientAddrs(), world.ServerAddrs(), policies)
	})
}

// with makes a site and prepares it.
func (s *Suite) with(name string, prepare func(*contender) error) (*contender, error) {
	c, err := s.open(name)
	if err != nil {
		return nil, err
	}
	if err := prepare(c); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", name, err), c.close())
	}
	return c, nil
}

// openLoop has one of the plain programs at the queue.
func (s *Suite) openLoop(name, role string) (*contender, error) {
	return s.with(name, func(c *contender) error {
		cmd := exec.Command(s.cfg.Worker[0], append(s.cfg.Worker[1:], role)...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := s.starter.Start(c.node.NS(), cmd); err != nil {
			return err
		}
		c.closers = append(c.closers, func() error {
			err := cmd.Process.Kill()
			_ = cmd.Wait() // killed, it says
			return err
		})
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || strings.TrimSpace(line) != workerReady {
			return fmt.Errorf("%s does not serve its queue: it says %q: %w", role, line, err)
		}
		c.process = cmd.Process.Pid
		c.queued = func() (uint64, error) { return kernelQueued(c.node.NS(), baseline.Queue) }
		return baseline.Divert(c.node.NS(), baseline.Queue)
	})
}

// agentPatience bounds the start of an agent with a large cluster.
const agentPatience = 2 * time.Minute

// openAgent has a firstpacket agent that enforces the policies of the world.
func (s *Suite) openAgent(ctx context.Context, name string, w world.World, args ...string) (*contender, error) {
	return s.with(name, func(c *contender) error {
		f := feed.New(w)
		var l net.Listener
		err := c.node.NS().Do(func() (err error) {
			l, err = new(net.ListenConfig).Listen(ctx, "tcp", feed.Address)
			return err
		})
		if err != nil {
			return fmt.Errorf("serve the cluster: %w", err)
		}
		served := make(chan error, 1)
		go func() { served <- f.Serve(l) }()
		c.closers = append(c.closers, func() error { return errors.Join(f.Close(), <-served) })

		kubeconfig := filepath.Join(s.dir, "kubeconfig")
		if err := os.WriteFile(kubeconfig, []byte(feed.Kubeconfig), 0o600); err != nil {
			return fmt.Errorf("write the kubeconfig: %w", err)
		}
		if err := s.startAgent(ctx, c, "", append([]string{"--kubeconfig", kubeconfig}, args...)); err != nil {
			return err
		}
		c.agent.feed = f
		return nil
	})
}

// startAgent starts an agent at the contender's site and waits until it enforces.
func (s *Suite) startAgent(ctx context.Context, c *contender, manifests string, args []string) error {
	a := agents.New(agents.Config{
		Binary: s.cfg.Agent, Args: args, Node: world.Node, Manifests: manifests, Namespace: c.node.NS(), Starter: s.starter,
	})
	if err := a.Start(); err != nil {
		return err
	}
	c.closers = append(c.closers, func() error { a.Kill(); return nil }) // its rules go with the namespace
	ready, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	if err := a.WaitReady(ready); err != nil {
		return err
	}
	layout, err := mark.New(mark.Default)
	if err != nil {
		return err
	}
	rules, err := ruleset.Open(ruleset.Config{Mask: layout, NetNS: c.node.NS().FD()})
	if err != nil {
		return err
	}
	c.agent, c.process = &firewall{Agent: a, rules: rules}, a.PID()
	c.queued = func() (uint64, error) {
		n, err := rules.Counters()
		return n.Queued, err
	}
	return nil
}

// forget empties the kernel's cache of verdicts, so that every tuple is new again.
func (a *firewall) forget() error {
	generation, err := a.rules.Generation()
	if err != nil {
		return err
	}
	return a.rules.Apply(ruleset.Update{Generation: generation, FlushAllowed: true, FlushDenied: true})
}

// cpuTime is the processor time of all threads of a process.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	var total time.Duration
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has just ended
		}
		// Time on the processor, time waiting for one, both in nanoseconds (Documentation/scheduler/sched-stats.rst).
		first, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		total += time.Duration(n)
	}
	return total, nil
}

// Worker is the main function of the processes that a Suite starts with Config.Worker: its only argument is the role.
// It ends with its standard input, or with the process that started it.
func Worker(role string) error {
	ready := func() { fmt.Println(workerReady) }
	switch role {
	case RoleRaw:
		return baseline.Raw(ready)
	case RoleCallback:
		return baseline.Callback(ready)
	}
	return load.Serve(role, os.Stdin, os.Stdout)
}
