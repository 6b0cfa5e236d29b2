package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
	"github.com/firstpacket/firstpacket/bench/lab/serve"
	"github.com/firstpacket/firstpacket/bench/lab/service"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

// pod is a running pod. Those that share their node's network have no wires of their own.
type pod struct {
	wires  *plumb.Pod
	node   string
	addrs  []netip.Addr
	ports  []corev1.ContainerPort
	server *serve.Server
}

// sync completes the objects and makes wires, servers, routes, rules and files what they say. Pods are wired before
// the files tell of them: an agent that is told of a pod finds it there.
func (l *Lab) sync(ctx context.Context) error {
	if err := l.cluster.Complete(); err != nil {
		return err
	}
	started, err := l.syncNodes()
	if err != nil {
		return err
	}
	if err := l.syncPods(ctx); err != nil {
		return err
	}
	if err := l.syncRoutes(); err != nil {
		return err
	}
	if err := l.syncServices(); err != nil {
		return err
	}
	if err := l.directory.Write(l.cluster); err != nil {
		return err
	}
	for _, n := range started {
		if n.agent != nil {
			if err := n.agent.Start(); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncNodes makes new nodes and takes removed ones away; it returns the new ones. What a node is like does not change
// while it lives.
func (l *Lab) syncNodes() ([]*node, error) {
	wanted := make(map[string]bool)
	var started []*node
	for _, object := range l.cluster.Nodes() {
		wanted[object.Name] = true
		if l.nodes[object.Name] != nil {
			continue
		}
		n, err := l.addNode(object)
		if err != nil {
			return nil, err
		}
		l.nodes[object.Name] = n
		started = append(started, n)
	}
	for name, n := range l.nodes {
		if wanted[name] {
			continue
		}
		if n.agent != nil {
			n.agent.Kill()
		}
		for key, p := range l.pods {
			if p.node == name {
				if err := l.removePod(key); err != nil {
					return nil, err
				}
			}
		}
		delete(l.nodes, name)
		if err := n.host.Close(); err != nil {
			return nil, err
		}
	}
	return started, nil
}

func (l *Lab) addNode(object *corev1.Node) (*node, error) {
	n := &node{object: object}
	var err error
	if n.addrs, err = topology.NodeAddrs(object); err != nil {
		return nil, err
	}
	if n.cidrs, err = topology.PodCIDRs(object); err != nil {
		return nil, err
	}
	n.host, err = l.network.AddHost(plumb.HostConfig{
		Name: "node/" + object.Name, Addrs: n.addrs, Node: true, Bridged: l.opts.Bridged, PodCIDRs: n.cidrs,
	})
	if err != nil {
		return nil, err
	}
	// A rule set of its own loads conntrack in the namespace before any packet has passed there.
	l.services = ""
	if l.opts.AgentBinary != "" {
		n.agent = agents.New(agents.Config{
			Binary: l.opts.AgentBinary, Args: l.opts.AgentArgs, Env: l.opts.AgentEnv, Node: object.Name,
			Manifests: l.directory.Path(), Namespace: n.host.NS(), Starter: l.starter, Sockets: l.opts.Sockets,
		})
	}
	return n, nil
}

func (l *Lab) syncPods(ctx context.Context) error {
	wanted := make(map[string]*pod)
	for _, object := range l.cluster.Pods() {
		if !topology.Running(object) {
			continue
		}
		addrs, err := topology.PodAddrs(object)
		if err != nil {
			return err
		}
		wanted[object.Namespace+"/"+object.Name] = &pod{
			node: object.Spec.NodeName, addrs: addrs, ports: topology.Ports(object),
		}
	}
	for key, p := range l.pods {
		w := wanted[key]
		if w != nil && w.node == p.node && slices.Equal(w.addrs, p.addrs) && slices.Equal(w.ports, p.ports) {
			continue
		}
		if err := l.removePod(key); err != nil {
			return err
		}
	}
	for _, object := range l.cluster.Pods() {
		key := object.Namespace + "/" + object.Name
		if wanted[key] == nil || l.pods[key] != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.addPod(key, wanted[key], object.Spec.HostNetwork); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addPod(key string, p *pod, hostNetwork bool) error {
	n := l.nodes[p.node]
	p.server = serve.New(key)
	l.pods[key] = p
	if hostNetwork {
		return l.listen(p.server, n.host.NS(), n.addrs, p.ports)
	}
	var err error
	if p.wires, err = n.host.AddPod(key, p.addrs); err != nil {
		return err
	}
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	return l.listen(p.server, p.wires.NS(), append(loopback, p.addrs...), p.ports)
}

// removePod closes the pod's server and its wires.
func (l *Lab) removePod(key string) error {
	p := l.pods[key]
	delete(l.pods, key)
	p.server.Close()
	if p.wires == nil {
		return nil
	}
	return p.wires.Close()
}

// listen serves each declared port on each address.
func (l *Lab) listen(s *serve.Server, n *ns.Namespace, addrs []netip.Addr, ports []corev1.ContainerPort) error {
	seen := make(map[string]bool)
	for _, port := range ports {
		id := fmt.Sprint(port.ContainerPort, port.Protocol)
		if seen[id] { // one number under two names
			continue
		}
		seen[id] = true
		network := "tcp"
		switch port.Protocol {
		case corev1.ProtocolTCP, "":
		case corev1.ProtocolUDP:
			network = "udp"
		default:
			l.opts.Logf("%s: port %d/%s is declared but not served: the lab serves TCP and UDP",
				n.Name(), port.ContainerPort, port.Protocol)
			continue
		}
		for _, a := range addrs {
			if err := s.Listen(n, network, netip.AddrPortFrom(a, uint16(port.ContainerPort))); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncRoutes tells every host where the other nodes' pods are: by range, and one by one where a pod's address lies
// outside its node's ranges.
func (l *Lab) syncRoutes() error {
	type behind struct {
		prefix netip.Prefix
		node   *node
	}
	var all []behind
	for _, n := range l.nodes {
		for _, cidr := range n.cidrs {
			all = append(all, behind{cidr, n})
		}
	}
	for _, p := range l.pods {
		if p.wires == nil {
			continue
		}
		n := l.nodes[p.node]
		for _, a := range p.addrs {
			if !slices.ContainsFunc(n.cidrs, func(cidr netip.Prefix) bool { return cidr.Contains(a) }) {
				all = append(all, behind{netip.PrefixFrom(a, a.BitLen()), n})
			}
		}
	}
	set := func(host *plumb.Host) error {
		routes := make(map[netip.Prefix]netip.Addr)
		for _, b := range all {
			via, ok := b.node.host.Source(b.prefix.Addr().Is6())
			if ok && b.node.host != host {
				routes[b.prefix] = via
			}
		}
		return host.SetRoutes(routes)
	}
	for _, n := range l.nodes {
		if err := set(n.host); err != nil {
			return err
		}
	}
	for _, o := range l.outside {
		if err := set(o.host); err != nil {
			return err
		}
	}
	return nil
}

// syncServices makes the Service rules anew on every node if anything they come from has changed.
func (l *Lab) syncServices() error {
	cfg := service.Config{
		Services: l.cluster.Services(), Slices: l.cluster.Slices(), Masquerade: l.opts.Masquerade,
	}
	var nodeAddrs []netip.Addr
	for _, name := range slices.Sorted(maps.Keys(l.nodes)) {
		cfg.PodCIDRs = append(cfg.PodCIDRs, l.nodes[name].cidrs...)
		nodeAddrs = append(nodeAddrs, l.nodes[name].addrs...)
	}
	cfg.NoMasquerade = nodeAddrs
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode services: %w", err)
	}
	if string(b) == l.services {
		return nil
	}
	var errs []error
	for _, n := range l.nodes {
		cfg.NodeAddrs = n.addrs
		errs = append(errs, service.Apply(n.host.NS(), cfg))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.services = string(b)
	return nil
}
