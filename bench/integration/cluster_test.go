package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := binary.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// cluster is a lab whose agents follow an API server. The lab's own directory holds the same objects, and is what the
// expectation is computed from.
type cluster struct {
	t      *testing.T
	lab    *lab.Lab
	client *kubernetes.Clientset
	// dynamic is for kinds that the former does not know.
	dynamic dynamic.Interface
	agents  map[string]*agents.Agent
	// written is the newest resource version, by kind, that the test has written.
	written map[string]int64
}

func newCluster(t *testing.T, objects ...topology.Object) *cluster {
	t.Helper()
	return newClusterWith(t, nil, nil, objects...)
}

// newClusterWith gives the agents further arguments, and defines kinds before they start.
func newClusterWith(t *testing.T, args, definitions []string, objects ...topology.Object) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := kubetest.Start(t, kube.Options{})
	c := &cluster{t: t, agents: map[string]*agents.Agent{}, written: map[string]int64{}}
	var err error
	c.client, err = kubernetes.NewForConfig(server.Config())
	c.must(err)
	c.dynamic, err = dynamic.NewForConfig(server.Config())
	c.must(err)
	for _, d := range definitions {
		c.define(d)
	}
	c.lab, err = lab.New(ctx, nil, lab.Options{})
	c.must(err)
	t.Cleanup(func() { c.check(c.lab.Close()) })
	c.apply(objects...)

	program, err := binary.Path()
	c.must(err)
	starter := ns.NewStarter()
	t.Cleanup(starter.Close)
	for _, node := range c.lab.Nodes() {
		c.forward(node.NS, server.URL())
		a := agents.New(agents.Config{
			Binary: program, Args: append([]string{"--kubeconfig", server.Kubeconfig()}, args...), Node: node.Node,
			Namespace: node.NS, Starter: starter,
		})
		c.agents[node.Node] = a
		c.must(a.Start())
		t.Cleanup(func() {
			c.check(a.Stop(context.Background()))
			if t.Failed() {
				for _, line := range a.Output().Lines() {
					t.Log(line)
				}
			}
		})
	}
	for _, a := range c.agents {
		c.must(a.WaitReady(ctx))
	}
	return c
}

// forward makes the API server reachable at the same loopback address inside a node's namespace.
func (c *cluster) forward(node *ns.Namespace, server string) {
	c.t.Helper()
	u, err := url.Parse(server)
	c.must(err)
	var l net.Listener
	c.must(node.Do(func() (err error) {
		l, err = net.Listen("tcp", u.Host)
		return err
	}))
	var running sync.WaitGroup
	c.t.Cleanup(func() {
		c.check(l.Close())
		running.Wait()
	})
	running.Go(func() {
		for {
			inside, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { pipe(inside, u.Host) })
		}
	})
}

func pipe(inside net.Conn, host string) {
	defer inside.Close()
	outside, err := net.Dial("tcp", host)
	if err != nil {
		return
	}
	defer outside.Close()
	var both sync.WaitGroup
	for _, d := range [][2]net.Conn{{inside, outside}, {outside, inside}} {
		both.Go(func() {
			_, _ = io.Copy(d[0], d[1]) // ends when either side does
			d[0].Close()
			d[1].Close()
		})
	}
	both.Wait()
}

// apply brings objects into the lab and into the API server.
func (c *cluster) apply(added ...topology.Object) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	c.must(c.lab.Apply(ctx, added...))
	objects, problems := manifests.Load(c.lab.Dir())
	c.must(problems.Err())
	for _, o := range objects.Namespaces() {
		c.save(rule.Ref{Name: o.Name}, "Namespace", o, func() (metav1.Object, error) {
			return c.client.CoreV1().Namespaces().Create(ctx, o, metav1.CreateOptions{})
		}, func() (metav1.Object, error) {
			return c.client.CoreV1().Namespaces().Update(ctx, o, metav1.UpdateOptions{})
		})
	}
	for _, o := range objects.Nodes() {
		status := o.Status
		c.save(rule.Ref{Name: o.Name}, "Node", o, func() (metav1.Object, error) {
			made, err := c.client.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
			if err != nil {
				return nil, err
			}
			made.Status = status
			return c.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
		}, nil)
	}
	for _, o := range objects.Pods() {
		c.savePod(ctx, o)
	}
	for _, o := range objects.NetworkPolicies() {
		policies := c.client.NetworkingV1().NetworkPolicies(o.Namespace)
		c.save(rule.Ref{Namespace: o.Namespace, Name: o.Name}, "NetworkPolicy", o, func() (metav1.Object, error) {
			return policies.Create(ctx, o, metav1.CreateOptions{})
		}, func() (metav1.Object, error) { return policies.Update(ctx, o, metav1.UpdateOptions{}) })
	}
}

func (c *cluster) applyYAML(manifest string) {
	c.t.Helper()
	objects, err := topology.Parse("test", []byte(manifest))
	c.must(err)
	c.apply(objects...)
}

// savePod makes a pod and then sets its status, as a scheduler and a kubelet do.
func (c *cluster) savePod(ctx context.Context, o *corev1.Pod) {
	c.t.Helper()
	pods, status := c.client.CoreV1().Pods(o.Namespace), o.Status
	for i := range o.Spec.Containers {
		if o.Spec.Containers[i].Image == "" {
			o.Spec.Containers[i].Image = "example.com/image"
		}
	}
	c.save(rule.Ref{Namespace: o.Namespace, Name: o.Name}, "Pod", o, func() (metav1.Object, error) {
		made, err := pods.Create(ctx, o, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		made.Status = status
		return pods.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	}, func() (metav1.Object, error) {
		now, err := pods.Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		now.Labels = o.Labels
		return pods.Update(ctx, now, metav1.UpdateOptions{})
	})
}

// save makes an object, or changes it if it is there; a nil change leaves it as it is.
func (c *cluster) save(ref rule.Ref, kind string, o metav1.Object, create, change func() (metav1.Object, error)) {
	c.t.Helper()
	o.SetResourceVersion("")
	made, err := create()
	if apierrors.IsAlreadyExists(err) {
		if change == nil {
			return
		}
		made, err = change()
	}
	if err != nil {
		c.t.Fatalf("%s %s: %v", kind, ref, err)
	}
	c.note(kind, made)
}

// note remembers what the agents have to catch up with.
func (c *cluster) note(kind string, made metav1.Object) {
	c.t.Helper()
	version, err := strconv.ParseInt(made.GetResourceVersion(), 10, 64)
	c.must(err)
	c.written[kind] = max(c.written[kind], version)
}

func (c *cluster) deletePolicy(namespace, name string) {
	c.t.Helper()
	c.must(c.lab.Delete(c.t.Context(), topology.Ref{
		Kind: "NetworkPolicy." + networkingv1.GroupName, Namespace: namespace, Name: name,
	}))
	policies := c.client.NetworkingV1().NetworkPolicies(namespace)
	c.deleteNoted("NetworkPolicy", name, policies.Watch, func(ctx context.Context) error {
		return policies.Delete(ctx, name, metav1.DeleteOptions{})
	})
}

// deleteNoted deletes an object and has the agents catch up with the version of the deletion, which only a watch tells.
func (c *cluster) deleteNoted(
	kind, name string, watcher func(context.Context, metav1.ListOptions) (watch.Interface, error),
	remove func(context.Context) error,
) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	w, err := watcher(ctx, metav1.SingleObject(metav1.ObjectMeta{Name: name}))
	c.must(err)
	defer w.Stop()
	c.must(remove(ctx))
	for e := range w.ResultChan() {
		if gone, ok := e.Object.(metav1.Object); ok && e.Type == watch.Deleted {
			c.note(kind, gone)
			return
		}
	}
	c.t.Fatalf("the API server did not tell of the deletion of %s %s", kind, name)
}

// waitApplied waits until all agents enforce everything that the test has written.
func (c *cluster) waitApplied() {
	c.t.Helper()
	for node, a := range c.agents {
		c.eventually("the agent of "+node+" applies what was written", func() error {
			s, err := a.Status(c.t.Context())
			if err != nil {
				return err
			}
			for kind, want := range c.written {
				have, err := strconv.ParseInt(s.Applied[kind], 10, 64)
				if err != nil || have < want {
					return fmt.Errorf("%s is at %q, written was %d", kind, s.Applied[kind], want)
				}
			}
			return nil
		})
	}
}

// checkMatrix probes everyone and compares with what the policies say.
func (c *cluster) checkMatrix() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	tables, connections, err := c.lab.Matrix(ctx, lab.MatrixOptions{})
	c.must(err)
	if connections == 0 {
		c.t.Fatal("nothing was probed")
	}
	for _, table := range tables {
		for _, d := range table.Differences() {
			c.t.Errorf("%s: %s -> %s %s: policy says %s, but: %s", table.Title, d.Row, d.Column.Name, d.Column.Port,
				d.Cell.Expected, d.Cell.Note)
		}
	}
}

func (c *cluster) eventually(what string, ask func() error) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	c.t.Fatalf("waited %s until %s: %v", patience, what, err)
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) check(err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Error(err)
	}
}
