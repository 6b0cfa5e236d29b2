package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// party is one side of the question.
type party struct {
	// ep is nil for addresses that nobody in the cluster owns.
	ep    *endpoint.Endpoint
	addrs []netip.Addr
	// ports are those that are asked about; destinations only.
	ports []port
	// service marks the one party that stands for a service, which has no addresses of its own.
	service bool
}

// Prefixes of names that are no pods.
const (
	prefixNode    = "node/"
	prefixService = "svc/"
)

func isNode(ep *endpoint.Endpoint) bool { return ep.Kind == identity.Node }

// party finds whom a word of the question means.
func (c Cluster) party(word, namespace string) ([]party, error) {
	if word == "" {
		return nil, fmt.Errorf("%w: both --from and --to are needed", ErrQuestion)
	}
	if a, err := netip.ParseAddr(word); err == nil {
		a = a.Unmap().WithZone("")
		return []party{{ep: c.Snapshot.Endpoint(a), addrs: []netip.Addr{a}}}, nil
	}
	if strings.HasPrefix(word, prefixService) {
		return []party{{service: true}}, nil
	}
	if name, ok := strings.CutPrefix(word, prefixNode); ok {
		return c.named(identity.Node, "", name)
	}
	ns, name, err := split(word, namespace)
	if err != nil {
		return nil, err
	}
	return c.named(identity.Pod, ns, name)
}

// split reads namespace/name or name.
func split(word, namespace string) (ns, name string, err error) {
	ns, name, qualified := strings.Cut(word, "/")
	if !qualified {
		ns, name = namespace, word
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
	}
	if ns == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("%w: %q is no address and no namespace/name", ErrQuestion, word)
	}
	return ns, name, nil
}

// named finds the endpoint of this name, with the addresses that it owns.
func (c Cluster) named(kind identity.Kind, namespace, name string) ([]party, error) {
	var found party
	var others []string
	for a, ep := range c.Snapshot.Endpoints() {
		if ep.Kind != kind || ep.Namespace != namespace {
			continue
		}
		if ep.Name != name {
			others = append(others, ep.Name)
			continue
		}
		found.ep = ep
		found.addrs = append(found.addrs, a)
	}
	if found.ep != nil {
		slices.SortFunc(found.addrs, netip.Addr.Compare)
		return []party{found}, nil
	}
	what := "pod " + namespace + "/" + name
	if kind == identity.Node {
		what = "node " + name
	}
	return nil, fmt.Errorf("%s with an address of its own: %w; %s", what, ErrNotFound, neighbours(kind, namespace, others))
}

// shown is how many names a message lists.
const shown = 5

// neighbours says which names there are instead.
func neighbours(kind identity.Kind, namespace string, names []string) string {
	if len(names) == 0 {
		if kind == identity.Node {
			return "no node has an address"
		}
		return "no pod in namespace " + namespace + " runs on the pod network"
	}
	slices.Sort(names)
	names = slices.Compact(names) // one name for each family
	where := "the nodes are "
	if kind == identity.Pod {
		where = "namespace " + namespace + " has "
	}
	if more := len(names) - shown; more > 0 {
		return fmt.Sprintf("%s%s and %d more", where, strings.Join(names[:shown], ", "), more)
	}
	return where + strings.Join(names, ", ")
}

// destinations finds whom To means, and which port of theirs.
func (c Cluster) destinations(word, namespace string, asked port) ([]party, error) {
	if rest, ok := strings.CutPrefix(word, prefixService); ok {
		return c.behind(rest, namespace, asked)
	}
	found, err := c.party(word, namespace)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if found[i].ports, err = asked.resolve(found[i].ep, word); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// behind finds the pods that a service sends the port's connections to.
func (c Cluster) behind(word, namespace string, asked port) ([]party, error) {
	if c.NoServices != nil {
		return nil, c.NoServices
	}
	ns, name, err := split(word, namespace)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.Services, func(s *corev1.Service) bool { return s.Namespace == ns && s.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("service %s/%s: %w", ns, name, ErrNotFound)
	}
	svc := c.Services[i]
	sp, err := servicePort(svc, asked)
	if err != nil {
		return nil, err
	}
	target := port{proto: asked.proto, number: uint16(sp.TargetPort.IntVal)}
	if sp.TargetPort.Type == intstr.String {
		target = port{proto: asked.proto, name: sp.TargetPort.StrVal}
	}
	pods, err := c.selected(svc)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].ports, err = target.resolve(pods[i].ep, pods[i].ep.Namespace+"/"+pods[i].ep.Name); err != nil {
			return nil, err
		}
	}
	return pods, nil
}

func servicePort(svc *corev1.Service, asked port) (*corev1.ServicePort, error) {
	var has []string
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		if protoOf(string(sp.Protocol)) == asked.proto &&
			(asked.name == "" && uint16(sp.Port) == asked.number || asked.name != "" && sp.Name == asked.name) {
			return sp, nil
		}
		has = append(has, fmt.Sprintf("%d/%s", sp.Port, sp.Protocol))
	}
	return nil, fmt.Errorf("port %s of service %s/%s: %w; it has %s", asked, svc.Namespace, svc.Name, ErrNotFound,
		strings.Join(has, ", "))
}

// selected finds the pods that the service's selector means, by name.
func (c Cluster) selected(svc *corev1.Service) ([]party, error) {
	if len(svc.Spec.Selector) == 0 {
		return nil, fmt.Errorf("service %s/%s selects no pods: %w; give an address that it leads to", svc.Namespace,
			svc.Name, ErrNotFound)
	}
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	byPod := map[*endpoint.Endpoint]*party{}
	for a, ep := range c.Snapshot.Endpoints() {
		if ep.Kind != identity.Pod || ep.Namespace != svc.Namespace {
			continue
		}
		id := ep.Identity.Identity()
		if !selector.Matches(labels.Set(id.Labels.Map())) {
			continue
		}
		if byPod[ep] == nil {
			byPod[ep] = &party{ep: ep}
		}
		byPod[ep].addrs = append(byPod[ep].addrs, a)
	}
	if len(byPod) == 0 {
		return nil, fmt.Errorf("a pod behind service %s/%s: %w", svc.Namespace, svc.Name, ErrNotFound)
	}
	var list []party
	for _, p := range byPod {
		slices.SortFunc(p.addrs, netip.Addr.Compare)
		list = append(list, *p)
	}
	slices.SortFunc(list, func(a, b party) int { return strings.Compare(a.ep.Name, b.ep.Name) })
	return list, nil
}
