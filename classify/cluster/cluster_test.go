package cluster

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/classify/label"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestPodAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		podIP  string
		podIPs []string
		want   []netip.Addr
	}{
		"none":                       {},
		"podIP alone":                {podIP: "10.0.0.1", want: addrs("10.0.0.1")},
		"podIPs before podIP":        {podIP: "10.0.0.9", podIPs: []string{"10.0.0.1"}, want: addrs("10.0.0.1")},
		"dual stack, sorted":         {podIPs: []string{"fd00::1", "10.0.0.1"}, want: addrs("10.0.0.1", "fd00::1")},
		"IPv4-mapped":                {podIPs: []string{"::ffff:10.0.0.1"}, want: addrs("10.0.0.1")},
		"the same twice":             {podIPs: []string{"10.0.0.1", "::ffff:10.0.0.1"}, want: addrs("10.0.0.1")},
		"not canonical":              {podIPs: []string{"FD00:0:0::0001"}, want: addrs("fd00::1")},
		"an invalid one is skipped":  {podIPs: []string{"10.0.0.300", "fd00::1"}, want: addrs("fd00::1")},
		"zones, loopback, multicast": {podIPs: []string{"fe80::1%eth0", "127.0.0.1", "224.0.0.1", "0.0.0.0", "::"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{Status: corev1.PodStatus{PodIP: c.podIP}}
			for _, ip := range c.podIPs {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
			}
			if got := NewPod(p).Addrs; !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPodState(t *testing.T) {
	deleted := metav1.Now()
	for _, c := range []struct {
		pod                       corev1.Pod
		owns, terminated, running bool
	}{
		{pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, owns: true, running: true},
		{pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending}}, owns: true},
		{pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, terminated: true},
		{pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}, terminated: true},
		{
			pod: corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &deleted},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning},
			},
			owns: true, running: true,
		},
		{
			pod: corev1.Pod{
				Spec: corev1.PodSpec{HostNetwork: true}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
			},
			running: true,
		},
	} {
		c.pod.Status.PodIP = "10.0.0.1"
		p := NewPod(&c.pod)
		if p.OwnsAddrs() != c.owns || p.Terminated != c.terminated || p.Running != c.running {
			t.Errorf("phase %s, host network %t: got %+v", c.pod.Status.Phase, c.pod.Spec.HostNetwork, p)
		}
	}
}

func TestPodNamesAndTimes(t *testing.T) {
	created, started := metav1.Unix(100, 0), metav1.Unix(200, 0)
	in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", CreationTimestamp: created}}
	p := NewPod(in)
	if p.Key() != "shop/web-1" || p.Namespace != "shop" || p.Name != "web-1" {
		t.Errorf("names: %+v", p)
	}
	if want := int64(100 * time.Second); p.Started != want {
		t.Errorf("started: got %d, want the creation %d", p.Started, want)
	}
	in.Status.StartTime = &started
	if got, want := NewPod(in).Started, int64(200*time.Second); got != want {
		t.Errorf("started: got %d, want %d", got, want)
	}
	if got := NewPod(&corev1.Pod{}).Started; got != 0 {
		t.Errorf("started without any time: %d", got)
	}
	if got := (&Pod{Namespace: "a", Name: "b"}).Key(); got != "a/b" {
		t.Errorf("key of a literal: %q", got)
	}
}

func TestUIDOrder(t *testing.T) {
	low, high := uid("00000000-0000-4000-8000-ffffffffffff"), uid("00000001-0000-4000-8000-000000000000")
	if string(low[:]) >= string(high[:]) {
		t.Errorf("%x is not below %x", low, high)
	}
	if uid("lab-pod-1") == uid("lab-pod-2") || uid("lab-pod-1") == (UID{}) {
		t.Error("other texts are not told apart")
	}
	if uid("zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz") == (UID{}) {
		t.Error("a text of a UUID's shape that is none has no order")
	}
}

func TestPodPorts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	in := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "init", ContainerPort: 1}}},
			{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: 15001}}},
		},
		Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{
				{Name: "web", ContainerPort: 8080},
				{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
				{Name: "assoc", ContainerPort: 9000, Protocol: corev1.ProtocolSCTP},
				{ContainerPort: 9999},
				{Name: "bad", ContainerPort: 70000},
				{Name: "odd", ContainerPort: 1, Protocol: "ICMP"},
			}},
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8081, Protocol: corev1.ProtocolTCP}}},
		},
	}}
	p := NewPod(in).Ports
	want := []NamedPort{
		{"assoc", 132, 9000}, {"dns", 17, 53}, {"proxy", 6, 15001}, {"web", 6, 8080}, {"web", 6, 8081},
	}
	if !reflect.DeepEqual(p.List, want) {
		t.Errorf("got %v, want %v", p.List, want)
	}
	if got := p.Lookup("web", 6); !reflect.DeepEqual(got, []uint16{8080, 8081}) {
		t.Errorf("lookup: %v", got)
	}
	if p.Lookup("web", 17) != nil || (*Ports)(nil).Lookup("web", 6) != nil {
		t.Error("lookup found what is not there")
	}
	if NewPod(in).Ports != p {
		t.Error("equal lists are not one pointer")
	}
	if NewPod(&corev1.Pod{}).Ports != nil {
		t.Error("no ports are not nil")
	}
}

func TestPortListsAreFreed(t *testing.T) {
	InternPorts([]NamedPort{{Name: "short-lived", Proto: 6, Port: 1}})
	for range 100 {
		runtime.GC()
		portLists.Lock()
		n := 0
		for key := range portLists.byContent {
			if strings.Contains(key, "short-lived") {
				n++
			}
		}
		portLists.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("a list that nobody uses is kept")
}

func TestNode(t *testing.T) {
	in := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.9.0.0/24", PodCIDRs: []string{"10.1.0.7/24", "fd00:1::/64", "nonsense"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "192.0.2.9"},
			{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
			{Type: corev1.NodeExternalIP, Address: "198.51.100.1"},
			{Type: corev1.NodeExternalIP, Address: "n1.example.com"},
		}},
	}
	n := NewNode(in)
	want := "[10.1.0.0/24 fd00:1::/64] [192.0.2.1 198.51.100.1] zone=a"
	if got := fmt.Sprint(n.PodCIDRs, n.Addrs, n.Labels); got != want {
		t.Error(got)
	}
	in.Spec.PodCIDRs = nil
	if got := fmt.Sprint(NewNode(in).PodCIDRs); got != "[10.9.0.0/24]" {
		t.Error(got)
	}
}

func TestNamespace(t *testing.T) {
	in := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "shop", Labels: map[string]string{"team": "a"},
		Annotations: map[string]string{AnnotationIsolation: "on", "other": "x"},
	}}
	ns := NewNamespace(in)
	if got := ns.Labels.String(); got != "kubernetes.io/metadata.name=shop,team=a" {
		t.Error(got)
	}
	if ns.Isolation != "on" || ns.NetworkPolicy != "" {
		t.Errorf("%+v", ns)
	}
	if got := UnknownNamespace("shop").Labels; got != label.Of(map[string]string{"kubernetes.io/metadata.name": "shop"}) {
		t.Error(got)
	}
}
