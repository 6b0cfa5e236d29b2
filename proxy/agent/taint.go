package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	taintPause   = 100 * time.Millisecond // until the agent is ready
	taintRetry   = 2 * time.Second
	taintTimeout = 10 * time.Second
)

// removeTaint takes the startup taint off this node once the agent enforces, and ends then. A node that registers with
// the taint gets no pods before they would be protected. It needs the permission to get and patch nodes.
func (a *agent) removeTaint(ctx context.Context) error {
	client, err := nodeClient(a.cfg.Kubeconfig)
	if err != nil {
		return err
	}
	pause := taintPause
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if a.ready() != nil {
			continue
		}
		removed, err := untaint(ctx, client, a.cfg.NodeName, a.cfg.RemoveTaint)
		switch {
		case err == nil:
			a.cfg.Log.Info().Str("taint", a.cfg.RemoveTaint).Int("removed", removed).Msg("this node may have pods")
			return nil
		case ctx.Err() == nil:
			a.cfg.Log.Warn().Err(err).Str("taint", a.cfg.RemoveTaint).
				Msg("cannot remove the taint; check that the agent may get and patch nodes; trying again")
		}
		pause = taintRetry
	}
}

// untaint removes all taints with the key. The patch holds only if nobody else changed the taints meanwhile.
func untaint(ctx context.Context, client rest.Interface, node, key string) (removed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, taintTimeout)
	defer cancel()
	var n corev1.Node
	if err := client.Get().Resource("nodes").Name(node).Do(ctx).Into(&n); err != nil {
		return 0, fmt.Errorf("read node %s: %w", node, err)
	}
	rest := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == key })
	removed = len(n.Spec.Taints) - len(rest)
	if removed == 0 {
		return 0, nil
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": n.Spec.Taints},
		{"op": "replace", "path": "/spec/taints", "value": rest},
	})
	if err != nil {
		return 0, fmt.Errorf("patch of node %s: %w", node, err)
	}
	if err := client.Patch(types.JSONPatchType).Resource("nodes").Name(node).Body(patch).Do(ctx).Error(); err != nil {
		return 0, fmt.Errorf("patch node %s: %w", node, err)
	}
	return removed, nil
}

// nodeClient is a client of the core API; an empty kubeconfig stands for the pod's service account.
func nodeClient(kubeconfig string) (rest.Interface, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("configuration of the API client: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of the API client: %w", err)
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	rc.APIPath, rc.GroupVersion = "/api", &corev1.SchemeGroupVersion
	rc.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	return client, nil
}
