package traps

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestNodeToOwnPods: a node reaches its own pods whatever policies say, and by a process without any privilege; the
// pods of other nodes it reaches as any machine outside does.
func TestNodeToOwnPods(t *testing.T) {
	b := newBed(t, lab.Options{})
	families(func(v6 bool) {
		for _, pod := range []string{"server", "closed"} {
			to := b.place(pod).At(v6, 80)
			b.reaches("node/one", to, probe.TCP)
			b.denied("node/two", to, probe.TCP)
			if err := connectUnprivileged(b.place("node/one").NS, to); err != nil {
				t.Errorf("unprivileged process to %s: %v", to, err)
			}
		}
		b.reaches("node/one", b.place("far").At(v6, 80), probe.TCP)
	})
}

// connectUnprivileged connects from a thread without capabilities and, where the user namespace has one, with another
// user than root.
func connectUnprivileged(n *ns.Namespace, to netip.AddrPort) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with what it has lost
		if err := n.Enter(); err != nil {
			done <- err
			return
		}
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			// A user namespace that maps one user only.
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			if err := unix.Capset(&header, &make([]unix.CapUserData, 2)[0]); err != nil {
				done <- os.NewSyscallError("capset", err)
				return
			}
		}
		done <- connect(to)
	}()
	return <-done
}

func connect(to netip.AddrPort) error {
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(to.Port())})
	if to.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	} else {
		addr.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	timeout := unix.NsecToTimeval(int64(patience / time.Nanosecond))
	return errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)),
		os.NewSyscallError("connect", unix.Connect(fd, addr)), unix.Close(fd))
}

const hosts = `
apiVersion: v1
kind: Pod
metadata: {name: host-one, labels: {role: client}}
spec: {nodeName: one, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 7000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-two, labels: {role: client}}
spec: {nodeName: two, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 7000}]}]}
`

// TestPodToNodes: a pod that may open no connection still reaches the node it runs on, and no other one.
func TestPodToNodes(t *testing.T) {
	b := newBed(t, lab.Options{}, hosts)
	families(func(v6 bool) {
		b.reaches("closed", b.place("node/one").At(v6, 7000), probe.TCP)
		b.denied("closed", b.place("node/two").At(v6, 7000), probe.TCP)
		b.reaches("stranger", b.place("node/two").At(v6, 7000), probe.TCP)
	})
}

// TestHostNetworkPods: they are host addresses. Their labels select nothing, so the one on the server's own node gets
// in as that node and the other one does not; and no policy isolates them.
func TestHostNetworkPods(t *testing.T) {
	b := newBed(t, lab.Options{}, hosts, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Ingress]
`)
	families(func(v6 bool) {
		b.reaches("host-one", b.place("server").At(v6, 80), probe.TCP)
		b.denied("host-two", b.place("server").At(v6, 80), probe.TCP)
		b.reaches("far", b.place("host-one").At(v6, 7000), probe.TCP)
		b.denied("far", b.place("client").At(v6, 80), probe.TCP)
	})
}

// TestLoopback: what a pod says to itself, over lo or by its own address, is nobody's business.
func TestLoopback(t *testing.T) {
	b := newBed(t, lab.Options{}, hosts)
	families(func(v6 bool) {
		local := netip.MustParseAddr("127.0.0.1")
		if v6 {
			local = netip.IPv6Loopback()
		}
		b.reaches("closed", netip.AddrPortFrom(local, 80), probe.TCP)
		b.reaches("closed", b.place("closed").At(v6, 80), probe.TCP)
		b.reaches("closed", b.place("closed").At(v6, 53), probe.UDP)
		b.reaches("node/one", b.place("node/one").At(v6, 7000), probe.TCP)
	})
}
