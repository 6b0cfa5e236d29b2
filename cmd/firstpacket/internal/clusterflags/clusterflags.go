// Package clusterflags gives commands the flags that say which cluster is meant, as kubectl has them, and loads that
// cluster: from an API server or from manifests.
package clusterflags

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/classify/source/kube"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/reach"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/policycache/state"
)

// Flags say which cluster is meant.
type Flags struct {
	Connection
	Manifests []string
	Namespace string
	Timeout   time.Duration
	// WithServices asks the API server for services too. It is no flag: commands set it where they need them.
	WithServices bool
}

// Add adds the flags to a command.
func (f *Flags) Add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.Manifests, "manifests", nil,
		"take the cluster from these files and directories of manifests; pods need their status, as kubectl get has it")
	f.Connection.Add(cmd)
	fs.StringVarP(&f.Namespace, "namespace", "n", "", "namespace of names that are given without one")
	fs.DurationVar(&f.Timeout, "timeout", 30*time.Second, "give up when the API server has not answered by then")
	cmd.MarkFlagsMutuallyExclusive("manifests", "kubeconfig")
	cmd.MarkFlagsMutuallyExclusive("manifests", "context")
}

// Cluster is a cluster at one moment.
type Cluster struct {
	// Namespace is the one that the flags, or the kubeconfig, name; "default" if neither does.
	Namespace string

	state    *state.State
	snapshot *engine.Snapshot
	// services are by namespace/name.
	services map[string]*corev1.Service
}

func (f *Flags) newCluster() *Cluster {
	return &Cluster{state: state.New(""), Namespace: f.Namespace, services: map[string]*corev1.Service{}}
}

// ErrEmpty is returned for a cluster without pods that have addresses.
var ErrEmpty = errors.New("no pod with an address")

// serviceKind is the kind of services in changes.
const serviceKind = "Service"

// Load loads the cluster. userAgent names the client in the API server's logs; progress, which may be nil, is where a
// long wait is shown.
func (f *Flags) Load(ctx context.Context, userAgent string, progress io.Writer) (*Cluster, error) {
	c := f.newCluster()
	var changes []source.Change
	var err error
	if len(f.Manifests) > 0 {
		changes, err = c.fromManifests(f.Manifests)
	} else {
		stop := terminal.NewProgress(progress, "waiting for the API server").Wait()
		changes, err = c.fromServer(ctx, f, userAgent)
		stop()
	}
	if err != nil {
		return nil, err
	}
	if c.Namespace == "" {
		c.Namespace = corev1.NamespaceDefault
	}
	c.snapshot, _ = c.state.Apply(changes)
	for range c.snapshot.Subjects() {
		return c, nil
	}
	if len(f.Manifests) > 0 {
		return nil, fmt.Errorf("%w: manifests of pods need status.podIPs and a phase, as kubectl get pods -A -o yaml "+
			"prints them", ErrEmpty)
	}
	return nil, fmt.Errorf("%w in this cluster", ErrEmpty)
}

func (c *Cluster) fromManifests(paths []string) ([]source.Change, error) {
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), paths...)
	if err := problems.Err(); err != nil {
		return nil, fmt.Errorf("the manifests have problems:\n%w", err)
	}
	for _, svc := range objects.Services() {
		c.services[svc.Namespace+"/"+svc.Name] = svc
	}
	return state.Of(objects)
}

func (c *Cluster) fromServer(ctx context.Context, f *Flags, userAgent string) ([]source.Change, error) {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	q, host, err := c.open(ctx, f, userAgent)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	if err := q.WaitSynced(ctx); err != nil {
		return nil, fmt.Errorf("%s did not tell everything within %s; check that you may list and watch: %w", host,
			f.Timeout, err)
	}
	batch, err := q.Next(ctx)
	if err != nil {
		return nil, err
	}
	return c.takeServices(batch.Changes), nil
}

// open begins to follow the cluster of an API server, until the context ends or the queue is closed.
func (c *Cluster) open(ctx context.Context, f *Flags, userAgent string) (q *source.Queue, host string, err error) {
	config, namespace, err := f.Config()
	if err != nil {
		return nil, "", fmt.Errorf("%w; give --kubeconfig, or --manifests to go without an API server", err)
	}
	if c.Namespace == "" {
		c.Namespace = namespace
	}
	src := kube.NewForConfig(config, userAgent)
	if err := src.WaitReachable(ctx, f.Timeout); err != nil {
		return nil, "", fmt.Errorf("check the address and credentials of the API server: %w", err)
	}
	q = source.New(ctx, source.Config{})
	kinds := state.Kinds()
	if f.WithServices {
		kinds = append(kinds, services())
	}
	for _, k := range kinds {
		if err := q.Add(src, k); err != nil {
			q.Close()
			return nil, "", err
		}
	}
	return q, src.Host(), nil
}

// services is the kind of core/v1 Services, which policy does not know and people name.
func services() source.Kind {
	return source.Kind{
		Name: serviceKind, GVR: corev1.SchemeGroupVersion.WithResource("services"), Namespaced: true,
		Example: &corev1.Service{}, AddToScheme: corev1.AddToScheme,
		Transform: func(o runtime.Object) (any, error) { return o.DeepCopyObject(), nil },
	}
}

// takeServices takes the services out of the changes.
func (c *Cluster) takeServices(changes []source.Change) []source.Change {
	return slices.DeleteFunc(changes, func(change source.Change) bool {
		if change.Kind != serviceKind {
			return false
		}
		if svc, ok := change.Object.(*corev1.Service); ok {
			c.services[change.Key] = svc
		} else {
			delete(c.services, change.Key)
		}
		return true
	})
}

// Asked is what questions are asked about. It stays as it is when the cluster changes.
func (c *Cluster) Asked() explain.Cluster {
	return explain.Cluster{Snapshot: c.snapshot, Services: slices.Collect(maps.Values(c.services))}
}

// World is what matrices are made of. It stays as it is when the cluster changes.
func (c *Cluster) World() reach.World {
	return reach.World{Snapshot: c.snapshot, Policies: maps.Clone(c.state.Policies()), PodCIDRs: c.state.PodCIDRs()}
}

// Applied is what came of applying manifests.
type Applied struct {
	Before, After reach.World
	// Affected are the addresses of which verdicts can differ.
	Affected []netip.Addr
	// Problems are those of policies that were applied, and of those only.
	Problems map[rule.Ref][]rule.Problem
}

// Recall takes over what pods were told under domain names; see state.State.
func (c *Cluster) Recall(kept []engine.Fact, latest time.Time) {
	c.state.Recall(kept, latest)
	c.snapshot, _ = c.state.Lapse(time.Now())
}

// Apply applies the objects of manifests to the cluster as kubectl apply would; to delete, they are taken away.
func (c *Cluster) Apply(paths []string, remove bool) (*Applied, error) {
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), paths...)
	if err := problems.Err(); err != nil {
		return nil, fmt.Errorf("the manifests have problems:\n%w", err)
	}
	changes, err := state.Of(objects)
	if err != nil {
		return nil, err
	}
	if remove {
		for i := range changes {
			changes[i].Object = nil
		}
	}
	a := &Applied{Before: c.World(), Problems: map[rule.Ref][]rule.Problem{}}
	old := c.state.Problems()
	var delta *engine.Delta
	if c.snapshot, delta = c.state.Apply(changes); delta != nil {
		a.Affected = delta.Affected
	}
	a.After = c.World()
	for ref, list := range c.state.Problems() {
		if !slices.Equal(list, old[ref]) {
			a.Problems[ref] = list
		}
	}
	return a, nil
}
