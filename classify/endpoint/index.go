package endpoint

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// Index turns changes of cluster objects into changes of address ownership. It may be fed in any order: a pod before
// its namespace, a new pod with a reused address before the end of the old one.
//
// An address belongs to the strongest object that claims it. Pods with their own network claim the addresses of their
// status until they terminate; nodes claim theirs. Of several claims a node's wins, then a running pod's over a pending
// one's, then the later start, then the greater UID, then the greater name.
//
// An Index is for one goroutine. The Endpoints it hands out are immutable and may go anywhere.
type Index struct {
	pods       map[string]*record // by namespace/name
	nodes      map[string]*node
	namespaces map[string]*namespace

	// owners has the strongest claim of each address, contested all claims of those addresses that have several.
	owners    map[netip.Addr]*record
	contested map[netip.Addr][]*record
	// before has, for the addresses touched since the last Flush, the owner that was told last.
	before map[netip.Addr]*Endpoint

	cidrs podCIDRs
}

// record is what the index keeps of a pod or node beside its Endpoint: what decides between claims. There is one per
// pod, so its size matters (64 bytes); what the Endpoint says already is not repeated.
type record struct {
	key     string
	ep      *Endpoint
	ns      *namespace // nil for nodes
	started int64
	uid     cluster.UID
	// slot is the place in ns.pods.
	slot int32
	// owns tells whether the object claims ep.Addrs.
	owns        bool
	hostNetwork bool
	terminated  bool
	running     bool
}

type node struct {
	record
	object *cluster.Node
}

// namespace exists while its object or a pod of it does.
type namespace struct {
	// object is cluster.UnknownNamespace until the real one has been seen.
	object *cluster.Namespace
	known  bool
	pods   []*record
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{
		pods:       map[string]*record{},
		nodes:      map[string]*node{},
		namespaces: map[string]*namespace{},
		owners:     map[netip.Addr]*record{},
		contested:  map[netip.Addr][]*record{},
		before:     map[netip.Addr]*Endpoint{},
		cidrs:      podCIDRs{refs: map[netip.Prefix]int{}},
	}
}

// SetPod adds the pod or replaces the one of the same name.
func (x *Index) SetPod(p *cluster.Pod) {
	key := p.Key()
	r := x.pods[key]
	if r == nil {
		r = &record{key: key}
		x.joinNamespace(r, p.Namespace)
		x.pods[key] = r
	}
	ep := podEndpoint(p, r.ns)
	if ep.equal(r.ep) {
		if r.owns == p.OwnsAddrs() && r.running == p.Running && r.started == p.Started && r.uid == p.UID {
			r.hostNetwork, r.terminated = p.HostNetwork, p.Terminated
			return
		}
		ep = r.ep
	}
	x.withdraw(r)
	r.ep = ep
	r.owns, r.hostNetwork, r.terminated, r.running = p.OwnsAddrs(), p.HostNetwork, p.Terminated, p.Running
	r.started, r.uid = p.Started, p.UID
	x.claim(r)
}

// DeletePod removes the pod with the key namespace/name. Unknown keys are ignored.
func (x *Index) DeletePod(key string) {
	r := x.pods[key]
	if r == nil {
		return
	}
	x.withdraw(r)
	delete(x.pods, key)
	x.leaveNamespace(r)
}

// SetNode adds the node or replaces the one of the same name.
func (x *Index) SetNode(n *cluster.Node) {
	r := x.nodes[n.Name]
	if r == nil {
		r = &node{record: record{key: n.Name}}
		x.nodes[n.Name] = r
	}
	x.cidrs.replace(r.podCIDRs(), n.PodCIDRs)
	r.object = n
	ep := nodeEndpoint(n)
	if ep.equal(r.ep) {
		if r.started == n.Created {
			return
		}
		ep = r.ep
	}
	x.withdraw(&r.record)
	r.ep, r.owns, r.started = ep, len(ep.Addrs) > 0, n.Created
	x.claim(&r.record)
}

// DeleteNode removes the node. Unknown names are ignored.
func (x *Index) DeleteNode(name string) {
	r := x.nodes[name]
	if r == nil {
		return
	}
	x.cidrs.replace(r.podCIDRs(), nil)
	x.withdraw(&r.record)
	delete(x.nodes, name)
}

// SetNamespace adds the namespace or replaces the one of the same name.
func (x *Index) SetNamespace(o *cluster.Namespace) {
	ns := x.namespaces[o.Name]
	if ns == nil {
		ns = &namespace{}
		x.namespaces[o.Name] = ns
	}
	ns.known = true
	x.describeNamespace(ns, o)
}

// DeleteNamespace removes the namespace object. Pods of it that still exist keep the label
// kubernetes.io/metadata.name as their only namespace label.
func (x *Index) DeleteNamespace(name string) {
	ns := x.namespaces[name]
	if ns == nil || !ns.known {
		return
	}
	if len(ns.pods) == 0 {
		delete(x.namespaces, name)
		return
	}
	ns.known = false
	x.describeNamespace(ns, cluster.UnknownNamespace(name))
}

// Flush returns what became of the addresses that were touched since the last Flush, in address order: one Change for
// each whose owner is another one by value. An owner that came out as it was keeps its Endpoint pointer.
func (x *Index) Flush() []Change {
	if len(x.before) == 0 {
		return nil
	}
	var changed []netip.Addr
	for addr, old := range x.before {
		r := x.owners[addr]
		switch {
		case r == nil && old == nil:
		case r != nil && old.equal(r.ep):
			r.ep = old
		default:
			changed = append(changed, addr)
		}
	}
	slices.SortFunc(changed, netip.Addr.Compare)
	var changes []Change
	if len(changed) > 0 {
		changes = make([]Change, len(changed))
	}
	// After the loop above, so that all addresses of one owner get the same pointer.
	for i, addr := range changed {
		changes[i] = Change{Addr: addr, Old: x.before[addr], New: x.Lookup(addr)}
	}
	// A map keeps the room of its largest time; the first Flush has every address of the cluster.
	if len(x.before) > 1024 {
		x.before = map[netip.Addr]*Endpoint{}
	} else {
		clear(x.before)
	}
	return changes
}

// Lookup returns the owner of the address, nil if it has none. It sees changes that Flush has not yet told.
func (x *Index) Lookup(addr netip.Addr) *Endpoint {
	if r := x.owners[addr]; r != nil {
		return r.ep
	}
	return nil
}

// Pod returns the pod and the endpoint it makes. The endpoint owns the pod's addresses only where Lookup says so.
func (x *Index) Pod(namespace, name string) (cluster.Pod, *Endpoint, bool) {
	r := x.pods[cluster.Key(namespace, name)]
	if r == nil {
		return cluster.Pod{}, nil, false
	}
	return r.pod(), r.ep, true
}

// Pods yields all pods, in no order, with the endpoints they make.
func (x *Index) Pods() iter.Seq2[cluster.Pod, *Endpoint] {
	return func(yield func(cluster.Pod, *Endpoint) bool) {
		for _, r := range x.pods {
			if !yield(r.pod(), r.ep) {
				return
			}
		}
	}
}

// Node returns the node object; it must not be changed.
func (x *Index) Node(name string) (*cluster.Node, bool) {
	n := x.nodes[name]
	if n == nil {
		return nil, false
	}
	return n.object, true
}

// Namespace returns the namespace object; it must not be changed. False if the object has not been seen.
func (x *Index) Namespace(name string) (*cluster.Namespace, bool) {
	ns := x.namespaces[name]
	if ns == nil || !ns.known {
		return nil, false
	}
	return ns.object, true
}

// PodCIDRs returns the pod CIDRs of all nodes, sorted, each once. The slice is shared and must not be changed; it
// stays the same slice until a node's CIDRs change.
func (x *Index) PodCIDRs() []netip.Prefix { return x.cidrs.list() }

// Counts are sizes of an Index.
type Counts struct {
	Pods, Nodes, Namespaces int
	// Addresses have an owner; Contested are those of them that several objects claim.
	Addresses, Contested int
}

// Counts returns the present sizes.
func (x *Index) Counts() Counts {
	c := Counts{Pods: len(x.pods), Nodes: len(x.nodes), Addresses: len(x.owners), Contested: len(x.contested)}
	for _, ns := range x.namespaces {
		if ns.known {
			c.Namespaces++
		}
	}
	return c
}

// describeNamespace gives the namespace's pods the identities that its labels now make.
func (x *Index) describeNamespace(ns *namespace, o *cluster.Namespace) {
	same := ns.object != nil && ns.object.Labels == o.Labels
	ns.object = o
	if same {
		return
	}
	for _, r := range ns.pods {
		x.touch(r)
		ep := *r.ep
		ep.Identity = podIdentity(ns, ep.Identity.Identity())
		r.ep = &ep
	}
}

func (x *Index) joinNamespace(r *record, name string) {
	ns := x.namespaces[name]
	if ns == nil {
		o := cluster.UnknownNamespace(name)
		ns = &namespace{object: o}
		x.namespaces[o.Name] = ns
	}
	r.ns, r.slot = ns, int32(len(ns.pods))
	ns.pods = append(ns.pods, r)
}

func (x *Index) leaveNamespace(r *record) {
	ns := r.ns
	last := len(ns.pods) - 1
	ns.pods[r.slot] = ns.pods[last]
	ns.pods[r.slot].slot = r.slot
	ns.pods[last] = nil
	ns.pods = ns.pods[:last]
	if last == 0 {
		ns.pods = nil
		if !ns.known {
			delete(x.namespaces, ns.object.Name)
		}
	}
}

func podEndpoint(p *cluster.Pod, ns *namespace) *Endpoint {
	return &Endpoint{
		Identity:  podIdentity(ns, identity.Identity{Labels: p.Labels}),
		Kind:      identity.Pod,
		Namespace: ns.object.Name,
		Name:      p.Name,
		Node:      p.Node,
		Addrs:     p.Addrs,
		Ports:     p.Ports,
	}
}

// podIdentity is the identity of a pod of the namespace with the labels of id.
func podIdentity(ns *namespace, id identity.Identity) identity.Handle {
	return identity.Intern(identity.Identity{
		Kind:            identity.Pod,
		Namespace:       ns.object.Name,
		NamespaceLabels: ns.object.Labels,
		Labels:          id.Labels,
	})
}

func nodeEndpoint(n *cluster.Node) *Endpoint {
	return &Endpoint{
		Identity: identity.Intern(identity.Identity{Kind: identity.Node, Labels: n.Labels}),
		Kind:     identity.Node,
		Name:     n.Name,
		Node:     n.Name,
		Addrs:    n.Addrs,
	}
}

// pod puts the object together again from the record and its endpoint.
func (r *record) pod() cluster.Pod {
	return cluster.Pod{
		Namespace:   r.ep.Namespace,
		Name:        r.ep.Name,
		UID:         r.uid,
		Node:        r.ep.Node,
		Labels:      r.ep.Identity.Identity().Labels,
		Addrs:       r.ep.Addrs,
		Ports:       r.ep.Ports,
		Started:     r.started,
		HostNetwork: r.hostNetwork,
		Terminated:  r.terminated,
		Running:     r.running,
	}
}

func (n *node) podCIDRs() []netip.Prefix {
	if n.object == nil {
		return nil
	}
	return n.object.PodCIDRs
}
