package cluster

import (
	"cmp"
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	corev1 "k8s.io/api/core/v1"
)

// IP protocol numbers of the transport protocols that Kubernetes knows (IANA protocol-numbers).
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// Ports is an interned list of a pod's named ports: of all its containers, native sidecars included. Equal lists of
// different pods are the same pointer, for as long as any of them is in use.
type Ports struct{ List []NamedPort }

// NamedPort is one entry of a container's ports that has a name.
type NamedPort struct {
	Name string
	// Proto is the IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
	Proto uint8
	Port  uint16
}

// Lookup returns the ports that carry name for the protocol; containers of one pod may use a name more than once.
func (p *Ports) Lookup(name string, proto uint8) []uint16 {
	if p == nil {
		return nil
	}
	var found []uint16
	for _, np := range p.List {
		if np.Name == name && np.Proto == proto && !slices.Contains(found, np.Port) {
			found = append(found, np.Port)
		}
	}
	return found
}

// portLists finds the one Ports of each distinct list. Entries are weak: the last pod that goes takes its list along.
var portLists = struct {
	sync.Mutex
	byContent map[string]weak.Pointer[Ports]
}{byContent: map[string]weak.Pointer[Ports]{}}

// InternPorts returns the interned form of list, in any order and with repetitions; nil for an empty one. The list is
// not kept.
func InternPorts(list []NamedPort) *Ports {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b NamedPort) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
	list = slices.Compact(list)

	var content []byte
	for _, np := range list {
		content = binary.AppendUvarint(content, uint64(len(np.Name)))
		content = append(content, np.Name...)
		content = append(content, np.Proto)
		content = binary.BigEndian.AppendUint16(content, np.Port)
	}

	portLists.Lock()
	defer portLists.Unlock()
	if p := portLists.byContent[string(content)].Value(); p != nil {
		return p
	}
	for i := range list {
		list[i].Name = interned(list[i].Name)
	}
	p := &Ports{List: slices.Clip(list)}
	key := string(content)
	portLists.byContent[key] = weak.Make(p)
	runtime.AddCleanup(p, forgetPorts, key)
	return p
}

// forgetPorts removes the entry of a list that nobody uses any more, unless the list was made anew in the meantime.
func forgetPorts(key string) {
	portLists.Lock()
	defer portLists.Unlock()
	if portLists.byContent[key].Value() == nil {
		delete(portLists.byContent, key)
	}
}

// podPorts collects the named ports that policy can refer to. Init containers have ended before the pod serves, except
// those that restart always: native sidecars, which run beside the main containers.
func podPorts(spec *corev1.PodSpec) *Ports {
	var list []NamedPort
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			list = appendPorts(list, c.Ports)
		}
	}
	for i := range spec.Containers {
		list = appendPorts(list, spec.Containers[i].Ports)
	}
	return InternPorts(list)
}

func appendPorts(list []NamedPort, ports []corev1.ContainerPort) []NamedPort {
	for i := range ports {
		p := &ports[i]
		proto, ok := protocol(p.Protocol)
		if p.Name == "" || !ok || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			continue
		}
		list = append(list, NamedPort{Name: p.Name, Proto: proto, Port: uint16(p.ContainerPort)})
	}
	return list
}

// protocol gives the IP protocol number; an absent protocol is TCP (core/v1 ContainerPort.protocol).
func protocol(p corev1.Protocol) (uint8, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return protoTCP, true
	case corev1.ProtocolUDP:
		return protoUDP, true
	case corev1.ProtocolSCTP:
		return protoSCTP, true
	}
	return 0, false
}
