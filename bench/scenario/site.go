package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/world"
)

// site is where one contender stands: a node between a pod of clients and a pod of servers, each in a namespace of its
// own. Packets between the pods pass the node's forward hook. All sites are alike and exist at once.
type site struct {
	network        *plumb.Network
	node           *plumb.Host
	client, server *plumb.Pod
	// noisy is a second client pod.
	noisy *plumb.Pod

	load, noise, serve *load.Worker
	conntrack          *netlink.Handle
	closers            []func() error
}

// hostAddr is the node's; every site has a network of its own.
var hostAddr = netip.MustParseAddr("192.0.2.1")

func newSite(starter *ns.Starter, worker []string) (_ *site, err error) {
	s := &site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.network, err = plumb.New(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.network.Close)
	s.node, err = s.network.AddHost(plumb.HostConfig{Name: "node", Addrs: []netip.Addr{hostAddr}, Node: true})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.node.Close)
	for _, p := range []struct {
		pod   **plumb.Pod
		name  string
		addrs []netip.Addr
	}{
		{&s.client, "client", world.ClientAddrs()},
		{&s.server, "server", world.ServerAddrs()},
		{&s.noisy, "noisy", []netip.Addr{world.NoisyAddr()}},
	} {
		if *p.pod, err = s.node.AddPod(p.name, p.addrs); err != nil {
			return nil, err
		}
		s.closers = append(s.closers, (*p.pod).Close)
		// All ports, and room for all connections that a server has not taken yet.
		err = (*p.pod).Sysctl(map[string]string{"ipv4/ip_local_port_range": "1025 65535", "core/somaxconn": "65535"})
		if err != nil {
			return nil, err
		}
	}
	if s.conntrack, err = netlink.NewHandleAt(netns.NsHandle(s.node.NS().FD()), unix.NETLINK_NETFILTER); err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	s.closers = append(s.closers, func() error { s.conntrack.Close(); return nil })
	for _, w := range []struct {
		worker **load.Worker
		pod    *plumb.Pod
		role   string
	}{{&s.serve, s.server, load.RoleServer}, {&s.load, s.client, load.RoleClient}, {&s.noise, s.noisy, load.RoleClient}} {
		if *w.worker, err = load.Start(starter, w.pod.NS(), worker, w.role); err != nil {
			return nil, err
		}
		s.closers = append(s.closers, (*w.worker).Close)
	}
	_, err = s.serve.Do(load.Job{Kind: load.Reset}) // it listens when it answers
	return s, err
}

// close ends the processes and takes the namespaces away, in reverse order.
func (s *site) close() error {
	var errs []error
	for _, end := range slices.Backward(s.closers) {
		errs = append(errs, end())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// flushConntrack forgets flows, so that those of earlier rounds do not slow down the next.
func (s *site) flushConntrack() error {
	if err := s.conntrack.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("flush conntrack: %w", err)
	}
	return nil
}

// received is the number of packets that have come to the server's interface.
func (s *site) received() (uint64, error) {
	var content []byte
	err := s.server.NS().Do(func() (err error) {
		content, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read interface counters: %w", err)
	}
	for line := range strings.Lines(string(content)) {
		if name, counters, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == "eth0" {
			return strconv.ParseUint(strings.Fields(counters)[1], 10, 64)
		}
	}
	return 0, errors.New("read interface counters: no eth0")
}

// kernelQueued is the number of packets that the queue has had.
func kernelQueued(n *ns.Namespace, queue int) (uint64, error) {
	var content []byte
	err := n.Do(func() (err error) {
		content, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the queue's counters: %w", err)
	}
	// queue, port, waiting, copy mode, copy range, dropped, user dropped, last id, 1 (nfnetlink_queue.c, seq_show)
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) >= 8 && f[0] == strconv.Itoa(queue) {
			return strconv.ParseUint(f[7], 10, 64)
		}
	}
	return 0, fmt.Errorf("queue %d is not there", queue)
}
