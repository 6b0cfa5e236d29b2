package failure

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

const startupTaint = "firstpacket.example/starting"

// served is a bed whose agent follows an API server in the node's namespace.
type served struct {
	*bed
	kube   *kube.Cluster
	client *kubernetes.Clientset
	agent  *agents.Agent
}

func newServed(t *testing.T) *served {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := &served{bed: &bed{t: t}}
	objects, err := topology.Parse("test", []byte(cluster))
	s.must(err)
	s.Lab, err = lab.New(ctx, objects, lab.Options{})
	s.must(err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	node, err := s.Place("node/one")
	s.must(err)
	s.kube = kubetest.Start(t, kube.Options{Netns: node.NS.FD()})
	s.client, err = kubernetes.NewForConfig(s.kube.Config())
	s.must(err)
	s.register(ctx, objects)
	s.binary, err = binary.Path()
	s.must(err)
	starter := ns.NewStarter()
	s.agent = agents.New(agents.Config{
		Binary: s.binary, Node: "one", Namespace: node.NS, Starter: starter,
		Args: []string{"--kubeconfig", s.kube.Kubeconfig(), "--remove-taint", startupTaint},
	})
	t.Cleanup(func() {
		s.agent.Kill()
		starter.Close()
		if t.Failed() {
			for _, line := range s.agent.Output().Lines() {
				t.Log(line)
			}
		}
	})
	return s
}

// register tells the API server of the node, tainted, and its pods.
func (s *served) register(ctx context.Context, objects []topology.Object) {
	s.t.Helper()
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.Name}, Spec: o.Spec}
			n.Spec.Taints = []corev1.Taint{{Key: startupTaint, Effect: corev1.TaintEffectNoSchedule},
				{Key: "other", Effect: corev1.TaintEffectPreferNoSchedule}}
			made, err := s.client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
			s.must(err)
			made.Status.Addresses = o.Status.Addresses
			_, err = s.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
			s.must(err)
		case *corev1.Pod:
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Labels: o.Labels}, Spec: *o.Spec.DeepCopy()}
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].Image = "none"
			}
			no := false
			p.Spec.AutomountServiceAccountToken = &no
			made, err := s.client.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
			s.must(err)
			made.Status = o.Status
			_, err = s.client.CoreV1().Pods("default").UpdateStatus(ctx, made, metav1.UpdateOptions{})
			s.must(err)
		}
	}
}

// policy creates or replaces a NetworkPolicy and waits for the agent to acknowledge it.
func (s *served) policy(manifest string) {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	var p networkingv1.NetworkPolicy
	s.must(yaml.Unmarshal([]byte(manifest), &p))
	api := s.client.NetworkingV1().NetworkPolicies("default")
	_ = api.Delete(ctx, p.Name, metav1.DeleteOptions{})
	made, err := api.Create(ctx, &p, metav1.CreateOptions{})
	s.must(err)
	s.applied(made.ResourceVersion)
}

// applied waits until the policies of the resource version are in force and settled.
func (s *served) applied(version string) {
	s.t.Helper()
	eventually(s.t, "resource version "+version+" is in force", func() bool {
		st, err := statusOf(s.agent)
		return err == nil && st.Settled == st.Generation && number(st.Applied["NetworkPolicy"]) >= number(version)
	})
}

func number(version string) (n uint64) {
	_, _ = fmt.Sscan(version, &n)
	return n
}

// TestAPIServerFaults takes the API server away and brings it back in several ways, with one cluster, as each takes
// seconds to start.
func TestAPIServerFaults(t *testing.T) {
	t.Parallel()
	s := newServed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s.must(s.agent.Start())
	s.must(s.agent.WaitReady(ctx))

	t.Run("startup taint", func(t *testing.T) {
		eventually(t, "the taint is removed, and only it", func() bool {
			n, err := s.client.CoreV1().Nodes().Get(ctx, "one", metav1.GetOptions{})
			has := func(key string) bool {
				return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
			}
			return err == nil && !has(startupTaint) && has("other")
		})
	})
	s.policy(admitting("friend"))
	s.denied("client", "server")
	s.reaches("friend", "server")
	held := s.flow("friend", "server", probe.TCP, false)
	enforced := func(t *testing.T) {
		t.Helper()
		s.denied("client", "server")
		s.reaches("friend", "server")
		if r := held.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("established flow: %v", r)
		}
	}
	generation := func() uint32 {
		st, err := statusOf(s.agent)
		s.must(err)
		return st.Generation
	}

	t.Run("server down and back", func(t *testing.T) {
		before := generation()
		s.kube.APIServer.Kill()
		enforced(t)
		_, err := s.agent.Get(ctx, "/readyz")
		if err != nil {
			t.Errorf("not ready without the API server: %v", err)
		}
		s.must(s.kube.APIServer.Start(ctx))
		enforced(t)
		if now := generation(); now != before {
			t.Errorf("the outage made generation %d of %d: a flap", now, before)
		}
		s.policy(admitting("friend", "bystander"))
		s.reaches("bystander", "server")
		enforced(t)
	})
	t.Run("changed while the server was away, and compacted", func(t *testing.T) {
		s.must(unix.Kill(s.agent.PID(), unix.SIGSTOP)) // the watch falls behind
		var last string
		for i := range 5 {
			p := mustPolicy(t, policyFor(fmt.Sprint("extra-", i), "bystander", "client"))
			made, err := s.client.NetworkingV1().NetworkPolicies("default").Create(ctx, p, metav1.CreateOptions{})
			s.must(err)
			last = made.ResourceVersion
		}
		_, err := s.kube.Compact(ctx)
		s.must(err)
		s.kube.APIServer.Kill() // and its cache of events is gone
		s.must(s.kube.APIServer.Start(ctx))
		s.must(unix.Kill(s.agent.PID(), unix.SIGCONT))
		s.applied(last)
		enforced(t)
		s.denied("friend", "bystander")
		s.reaches("client", "bystander")
	})
	t.Run("server that hangs", func(t *testing.T) {
		s.kube.APIServer.Pause()
		enforced(t)
		s.kube.APIServer.Resume()
		s.policy(admitting("friend"))
		enforced(t)
		s.denied("bystander", "server")
	})
	t.Run("agent killed while the server is away", func(t *testing.T) {
		s.kube.APIServer.Kill()
		s.agent.Kill()
		s.denied("client", "server")
		s.must(s.agent.Start())
		if r := held.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("established flow: %v", r)
		}
		s.denied("client", "server")
		s.must(s.kube.APIServer.Start(ctx))
		s.must(s.agent.WaitReady(ctx))
		enforced(t)
	})
}

func mustPolicy(t *testing.T, manifest string) *networkingv1.NetworkPolicy {
	t.Helper()
	var p networkingv1.NetworkPolicy
	if err := yaml.Unmarshal([]byte(manifest), &p); err != nil {
		t.Fatal(err)
	}
	return &p
}
