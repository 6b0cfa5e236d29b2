package cluster

import (
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/classify/label"
)

// UID is the order of pods that cannot be told apart otherwise: the first eight bytes of metadata.uid. UUIDs of the API
// server are random, so that eight bytes decide as well as sixteen.
type UID [8]byte

// Pod is what classification keeps of a core/v1 Pod.
type Pod struct {
	// key is Namespace + "/" + Name. NewPod makes Namespace and Name share its memory; a Pod built as a literal
	// has none.
	key string

	Namespace string
	Name      string
	UID       UID
	// Node is spec.nodeName; empty while the pod is not scheduled.
	Node   string
	Labels label.Set
	// Addrs are the valid ones of status.podIPs (status.podIP where that is empty), sorted. A host-network pod lists
	// the addresses of its node here, which are not its own: see OwnsAddrs.
	Addrs []netip.Addr
	// Ports are the named container ports; nil for none.
	Ports *Ports
	// Started is status.startTime, or metadata.creationTimestamp before the kubelet has seen the pod; nanoseconds since
	// 1970, and 0 when the object has neither.
	Started int64

	HostNetwork bool
	// Terminated is true in the phases Succeeded and Failed: the pod's addresses may already be another pod's. A pod
	// that is being deleted still runs, and keeps its addresses until it is gone.
	Terminated bool
	// Running is true in the phase Running.
	Running bool
}

// NewPod makes the compact form of p, which is not kept.
func NewPod(p *corev1.Pod) *Pod {
	key := Key(p.Namespace, p.Name)
	pod := &Pod{
		key:         key,
		Namespace:   key[:len(p.Namespace)],
		Name:        key[len(key)-len(p.Name):],
		UID:         uid(string(p.UID)),
		Node:        interned(p.Spec.NodeName),
		Labels:      label.Of(p.Labels),
		Addrs:       podAddrs(&p.Status),
		Ports:       podPorts(&p.Spec),
		Started:     started(p),
		HostNetwork: p.Spec.HostNetwork,
		Terminated:  p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Running:     p.Status.Phase == corev1.PodRunning,
	}
	return pod
}

// Key is namespace/name.
func (p *Pod) Key() string {
	if p.key == "" {
		return Key(p.Namespace, p.Name)
	}
	return p.key
}

// OwnsAddrs tells whether packets from and to the pod's addresses are the pod's: neither the host's nor, after the pod
// has ended, anybody's.
func (p *Pod) OwnsAddrs() bool { return !p.HostNetwork && !p.Terminated && len(p.Addrs) > 0 }

func podAddrs(s *corev1.PodStatus) []netip.Addr {
	if len(s.PodIPs) == 0 {
		return addrSet([]string{s.PodIP})
	}
	raw := make([]string, len(s.PodIPs))
	for i := range s.PodIPs {
		raw[i] = s.PodIPs[i].IP
	}
	return addrSet(raw)
}

func started(p *corev1.Pod) int64 {
	if p.Status.StartTime != nil && !p.Status.StartTime.IsZero() {
		return p.Status.StartTime.UnixNano()
	}
	return created(p.CreationTimestamp)
}

func created(t metav1.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// uid takes the leading bytes of a UUID in its text form, in which order they compare as the text does. Any other text
// is hashed: it need only be the same answer every time.
func uid(s string) UID {
	var u UID
	if s == "" {
		return u
	}
	if head := strings.ReplaceAll(s, "-", ""); len(s) == 36 && len(head) == 32 {
		if _, err := hex.Decode(u[:], []byte(head[:16])); err == nil {
			return u
		}
	}
	h := fnv.New64a()
	h.Write([]byte(s))
	h.Sum(u[:0])
	return u
}
