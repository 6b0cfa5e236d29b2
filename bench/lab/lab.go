// Package lab is a cluster on one machine: from ordinary manifests to pods that answer on their ports.
//
// Every node, every pod and every machine outside the cluster is a network namespace of this process; Services are
// translated in the nodes' namespaces; each node may have an agent. The objects, completed with the addresses they got,
// are kept as manifests in a directory that the agents read and that people may edit. Nothing of the host is touched,
// and nothing is left when the process ends, however it ends.
//
// Tests call Main from their TestMain, and commands call ns.Enter: both make the lab work for users other than root.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
	"github.com/firstpacket/firstpacket/bench/lab/serve"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

// Options say what kind of lab to make. The zero value is a cluster without agents.
type Options struct {
	// Dir is where the completed manifests are kept; empty makes a temporary directory that Close removes, or after a
	// crash the next lab.
	Dir string
	// Bridged joins the pods of a node by a bridge instead of routing to each.
	Bridged bool
	// Masquerade hides pods behind their node when they speak to anything outside the cluster.
	Masquerade bool
	// Outside are machines that are not part of the cluster.
	Outside []Outside
	// AgentBinary is the program to run on each node; empty runs none. The agents are started when New returns, but not
	// waited for: see WaitReady.
	AgentBinary string
	// AgentArgs are added to each agent's arguments, AgentEnv to its environment.
	AgentArgs, AgentEnv []string
	// Sockets is a directory in which each agent also serves its endpoints, on a unix socket NODE.sock; empty is none.
	Sockets string
	// Logf takes notes about manifests that can be had only in part. May be nil.
	Logf func(format string, args ...any)
}

// Outside is a machine on the nodes' network that is no node.
type Outside struct {
	// Name is how it is called in probes: "outside/NAME".
	Name  string
	Addrs []netip.Addr
	// Ports are served as a pod's are.
	Ports []corev1.ContainerPort
}

// Lab is a running cluster. Its methods may be called from several goroutines; changes wait for each other.
type Lab struct {
	opts Options
	// temporary is the directory that Close removes; nil for one that was given.
	temporary *tempDir

	mu        sync.Mutex
	cluster   *topology.Cluster
	directory *topology.Directory
	starter   *ns.Starter
	network   *plumb.Network
	nodes     map[string]*node
	pods      map[string]*pod // by namespace/name
	outside   map[string]*outside
	// services is what the Service rules were last made from.
	services string
}

type node struct {
	host   *plumb.Host
	object *corev1.Node
	addrs  []netip.Addr
	cidrs  []netip.Prefix
	agent  *agents.Agent
}

type outside struct {
	host   *plumb.Host
	cfg    Outside
	server *serve.Server
}

// New makes the cluster that the objects describe. The objects become the lab's.
func New(ctx context.Context, objects []topology.Object, opts Options) (*Lab, error) {
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	l := &Lab{
		opts: opts, cluster: topology.New(), starter: ns.NewStarter(),
		nodes: make(map[string]*node), pods: make(map[string]*pod), outside: make(map[string]*outside),
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.Apply(ctx, objects...); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) open() (err error) {
	dir := l.opts.Dir
	if dir == "" {
		if l.temporary, err = newTempDir(); err != nil {
			return err
		}
		dir = l.temporary.path
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory of the manifests: %w", err)
	}
	l.directory = topology.NewDirectory(dir)
	if l.network, err = plumb.New(); err != nil {
		return err
	}
	for _, o := range l.opts.Outside {
		if err := l.addOutside(o); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addOutside(o Outside) error {
	host, err := l.network.AddHost(plumb.HostConfig{Name: "outside/" + o.Name, Addrs: o.Addrs})
	if err != nil {
		return err
	}
	server := serve.New("outside/" + o.Name)
	l.outside[o.Name] = &outside{host, o, server}
	return l.listen(server, host.NS(), o.Addrs, o.Ports)
}

// Dir is the directory of the completed manifests. Files may be added and changed; see Reload.
func (l *Lab) Dir() string { return l.directory.Path() }

// Close ends the agents and takes everything away.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, n := range l.nodes {
		if n.agent != nil {
			n.agent.Kill()
		}
	}
	l.starter.Close()
	for name := range l.pods {
		errs = append(errs, l.removePod(name))
	}
	for _, o := range l.outside {
		o.server.Close()
		errs = append(errs, o.host.Close())
	}
	for _, n := range l.nodes {
		errs = append(errs, n.host.Close())
	}
	if l.network != nil {
		errs = append(errs, l.network.Close())
	}
	if l.temporary != nil {
		errs = append(errs, l.temporary.remove())
	}
	l.nodes, l.outside, l.network, l.temporary = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Apply adds objects or replaces those of the same name, and brings the lab and its directory in step. Agents learn of
// it from the directory: see WaitApplied.
func (l *Lab) Apply(ctx context.Context, objects ...topology.Object) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cluster.Apply(objects...)
	return l.sync(ctx)
}

// ApplyYAML is Apply for the documents of a manifest.
func (l *Lab) ApplyYAML(ctx context.Context, manifest string) error {
	objects, err := topology.Parse("manifest", []byte(manifest))
	if err != nil {
		return err
	}
	return l.Apply(ctx, objects...)
}

// Delete removes objects and brings the lab and its directory in step. Objects that are not there are ignored.
func (l *Lab) Delete(ctx context.Context, refs ...topology.Ref) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cluster.Delete(refs...)
	return l.sync(ctx)
}

// Reload takes over what was changed in the directory since the lab last wrote or read it, and says whether that was
// anything. On an error, a file half edited for instance, the lab stays as it is.
func (l *Lab) Reload(ctx context.Context) (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if changed, err = l.directory.Read(l.cluster); err != nil || !changed {
		return false, err
	}
	return true, l.sync(ctx)
}
