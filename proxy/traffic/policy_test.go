package traffic

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/reach"
	"github.com/firstpacket/firstpacket/policycache/state"
)

// worldOf is the cluster of a manifest.
func worldOf(t *testing.T, text string) reach.World {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), path)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	changes, err := state.Of(objects)
	if err != nil {
		t.Fatal(err)
	}
	s := state.New("")
	snapshot, _ := s.Apply(changes)
	return reach.World{Snapshot: snapshot, Policies: s.Policies(), PodCIDRs: s.PodCIDRs()}
}

func pod(namespace, name, app string, number int) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, labels: {app: %s}}\n"+
		"spec: {nodeName: n1}\nstatus: {phase: Running, podIPs: [{ip: 10.0.%d.%d}]}\n", namespace, name, app, number/200,
		number%200+1)
}

const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.0.0.0/16]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}]
`

func TestPossible(t *testing.T) {
	w := worldOf(t, cluster+pod("shop", "web-1", "web", 1)+pod("shop", "web-2", "web", 2)+
		pod("shop", "web-3", "other", 3)+pod("shop", "db-0", "db", 4))
	p, err := PossibleIn(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	web, db := Party{"shop", "web"}, Party{"shop", "db"}
	want := Possible{Edges: []PossibleEdge{
		{From: web, To: db, Ports: []string{"5432/TCP"}, Part: true},
		{From: Party{Name: "other addresses"}, To: db},
		{From: Party{Name: "198.51.100.0/24"}, To: db, All: true},
	}}
	if d := cmp.Diff(want, p); d != "" {
		t.Error(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := PossibleIn(ctx, w); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestPossibleOfManyWorkloads: they are drawn by their namespaces, of which a kind or two stands for all.
func TestPossibleOfManyWorkloads(t *testing.T) {
	var text strings.Builder
	text.WriteString(cluster + pod("shop", "db-0", "db", 0))
	for i := range maxParties + 1 {
		text.WriteString(pod("shop", fmt.Sprintf("thing%dx", i), fmt.Sprint("thing", i), i+1))
	}
	p, err := PossibleIn(t.Context(), worldOf(t, text.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Sampled || p.LeftOut != 0 || len(p.Edges) == 0 {
		t.Errorf("%+v", p)
	}
	for _, e := range p.Edges {
		if e.To != (Party{"shop", "*"}) {
			t.Errorf("%+v", e)
		}
	}
}
