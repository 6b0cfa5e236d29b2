package lab

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab/expect"
	"github.com/firstpacket/firstpacket/bench/lab/matrix"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// Place is somewhere to probe from, or to: a pod, a node or a machine outside.
type Place struct {
	// Name is namespace/name of a pod, "node/NAME" or "outside/NAME".
	Name string
	NS   *ns.Namespace
	// Addrs are its addresses, the preferred one of each family first.
	Addrs []netip.Addr
	// Ports are what it serves.
	Ports []corev1.ContainerPort
	// Node is the name of the node that a pod runs on, or of the node itself.
	Node string
	// HostNetwork says that a pod shares its node's network.
	HostNetwork bool
	wires       *plumb.Pod
}

// Addr is the place's address of the family, false if it has none.
func (p Place) Addr(v6 bool) (netip.Addr, bool) {
	for _, a := range p.Addrs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// At is the place's address of the family with a port; it is invalid if the place has no such address.
func (p Place) At(v6 bool, port uint16) netip.AddrPort {
	a, _ := p.Addr(v6)
	return netip.AddrPortFrom(a, port)
}

// Tap opens a packet socket at the place's interface.
func (p Place) Tap() (*wire.Tap, error) { return wire.Open(p.NS, "eth0") }

// Inject sends a crafted packet from a pod towards its node.
func (p Place) Inject(t *wire.Tap, packet []byte) error {
	if p.wires == nil {
		return fmt.Errorf("inject from %s: only pods have a gateway to inject at", p.Name)
	}
	return t.Send(packet, p.wires.Gateway())
}

// Place finds a place by name: namespace/name of a pod, "node/NAME" or "outside/NAME".
func (l *Lab) Place(name string) (Place, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.place(name)
}

func (l *Lab) place(name string) (Place, error) {
	kind, rest, _ := strings.Cut(name, "/")
	if n := l.nodes[rest]; kind == "node" && n != nil {
		return Place{Name: name, NS: n.host.NS(), Addrs: n.addrs, Node: rest}, nil
	}
	if o := l.outside[rest]; kind == "outside" && o != nil {
		return Place{Name: name, NS: o.host.NS(), Addrs: o.cfg.Addrs, Ports: o.cfg.Ports}, nil
	}
	p := l.pods[name]
	if p == nil {
		return Place{}, fmt.Errorf("there is no running pod, node or outside machine %q in the lab", name)
	}
	place := Place{Name: name, Addrs: p.addrs, Ports: p.ports, Node: p.node, wires: p.wires}
	if p.wires == nil {
		place.NS, place.HostNetwork, place.Addrs = l.nodes[p.node].host.NS(), true, l.nodes[p.node].addrs
	} else {
		place.NS = p.wires.NS()
	}
	return place, nil
}

// Pods are the running pods in the order of the manifests.
func (l *Lab) Pods() []Place {
	l.mu.Lock()
	defer l.mu.Unlock()
	var places []Place
	for _, object := range l.cluster.Pods() {
		if p, err := l.place(object.Namespace + "/" + object.Name); err == nil {
			places = append(places, p)
		}
	}
	return places
}

// Nodes are the nodes, Outside the machines that are none, by name.
func (l *Lab) Nodes() []Place { return places(l, "node/", l.nodes) }

// Outside are the machines on the nodes' network that are no nodes, by name.
func (l *Lab) Outside() []Place { return places(l, "outside/", l.outside) }

func places[T any](l *Lab, prefix string, all map[string]T) []Place {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []Place
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if p, err := l.place(prefix + name); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// Service returns the address of a Service in the family with one of its ports; it is invalid if there is none.
func (l *Lab) Service(namespace, name string, v6 bool, port uint16) netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.cluster.Get(topology.Ref{Kind: "Service", Namespace: namespace, Name: name}).(*corev1.Service)
	if ok {
		for _, ip := range s.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil && a.Is6() == v6 {
				return netip.AddrPortFrom(a, port)
			}
		}
	}
	return netip.AddrPort{}
}

// Probe sends probes; see probe.Run.
func (l *Lab) Probe(ctx context.Context, probes ...probe.Probe) ([]probe.Result, error) {
	return probe.Run(ctx, probes)
}

// MatrixOptions say what a matrix covers.
type MatrixOptions struct {
	// From and To are the places to probe from and to; nil means all pods, and for From the machines outside, too.
	From, To []Place
	// Wait is how long a probe may take that policy says is denied, PatientWait one that ought to be answered. Zeros are
	// probe.DefaultWait and two seconds.
	Wait, PatientWait time.Duration
	// Self includes what places have to themselves.
	Self bool
	// OnlyAllowed leaves out what policy denies: those cells are void.
	OnlyAllowed bool
}

// Matrix probes every pair at every served port of the destination, on both families, next to what the policies in the
// directory say. The tables are that of IPv4 and that of IPv6. Connections is the number of probes sent.
func (l *Lab) Matrix(ctx context.Context, opts MatrixOptions) (tables [2]*matrix.Table, connections int, err error) {
	policy, err := expect.Load(l.Dir())
	if err != nil {
		return tables, 0, err
	}
	if opts.From == nil {
		opts.From = append(l.Pods(), l.Outside()...)
	}
	if opts.To == nil {
		opts.To = l.Pods()
	}
	if opts.PatientWait == 0 {
		opts.PatientWait = 2 * time.Second
	}
	var probes []probe.Probe
	var cells []*matrix.Cell
	var names []string
	for i, title := range []string{"IPv4", "IPv6"} {
		t := newTable(title, opts)
		tables[i] = t
		for r, from := range opts.From {
			column := 0
			for _, to := range opts.To {
				for _, port := range served(to.Ports) {
					cell := &t.Cells[r][column]
					column++
					p, ok := cellProbe(from, to, port, i == 1)
					if !ok || from.Name == to.Name && !opts.Self {
						cell.Void = true
						continue
					}
					source, _ := from.Addr(i == 1)
					allowed := policy.Allows(source, p.To, uint8(p.Proto))
					cell.Expected = matrix.Of(allowed)
					if opts.OnlyAllowed && !allowed {
						cell.Void = true
						continue
					}
					if p.Wait = opts.Wait; allowed {
						p.Wait = opts.PatientWait
					}
					probes, cells, names = append(probes, p), append(cells, cell), append(names, to.Name)
				}
			}
		}
	}
	results, err := probe.Run(ctx, probes)
	if err != nil {
		return tables, 0, err
	}
	for i, r := range results {
		cells[i].Note = r.String()
		switch {
		case r.Outcome == probe.Reached && r.By == names[i]:
			cells[i].Observed = matrix.Yes
		case r.Denied():
			cells[i].Observed = matrix.No
		default:
			cells[i].Observed = matrix.Broken
		}
	}
	return tables, len(probes), nil
}

func newTable(title string, opts MatrixOptions) *matrix.Table {
	var rows []string
	for _, from := range opts.From {
		rows = append(rows, from.Name)
	}
	var columns []matrix.Column
	for _, to := range opts.To {
		for _, port := range served(to.Ports) {
			name := fmt.Sprint(port.ContainerPort)
			if port.Protocol == corev1.ProtocolUDP {
				name += "/UDP"
			}
			columns = append(columns, matrix.Column{Name: to.Name, Port: name})
		}
	}
	return matrix.New(title, rows, columns)
}

// served are the ports that the lab has servers on, each once.
func served(ports []corev1.ContainerPort) []corev1.ContainerPort {
	var found []corev1.ContainerPort
	for _, p := range ports {
		if p.Protocol != corev1.ProtocolSCTP && !slices.ContainsFunc(found, func(o corev1.ContainerPort) bool {
			return o.ContainerPort == p.ContainerPort && o.Protocol == p.Protocol
		}) {
			found = append(found, p)
		}
	}
	return found
}

func cellProbe(from, to Place, port corev1.ContainerPort, v6 bool) (probe.Probe, bool) {
	p := probe.Probe{From: from.NS, To: to.At(v6, uint16(port.ContainerPort)), Proto: probe.TCP}
	if port.Protocol == corev1.ProtocolUDP {
		p.Proto = probe.UDP
	}
	_, ok := from.Addr(v6)
	return p, ok && p.To.Addr().IsValid()
}
