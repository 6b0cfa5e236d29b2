package topology

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func complete(t *testing.T, manifest string) *Cluster {
	t.Helper()
	objects, err := Parse("test", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	c := New()
	c.Apply(objects...)
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return c
}

const manifest = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- {apiVersion: v1, kind: Node, metadata: {name: b}, spec: {podCIDRs: [10.244.0.0/24]}}
---
# nothing but a comment
---
{apiVersion: v1, kind: Pod, metadata: {name: given, labels: {app: x}}, spec: {nodeName: b,
  containers: [{name: c, ports: [{name: p, containerPort: 1}]}]}, status: {podIPs: [{ip: 10.244.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: free, labels: {app: x}}, spec: {nodeName: b,
  initContainers: [{name: i, ports: [{name: q, containerPort: 9}]},
    {name: s, restartPolicy: Always, ports: [{name: p, containerPort: 2}]}], containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: anywhere, namespace: other}, spec: {containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done}, spec: {containers: [{name: c}]}, status: {phase: Succeeded}}
---
{apiVersion: v1, kind: Service, metadata: {name: svc}, spec: {selector: {app: x}, ports: [{port: 80, targetPort: p}]}}
---
{apiVersion: example.com/v1, kind: Unknown, metadata: {name: u}, spec: {any: [1, two]}}
`

func TestComplete(t *testing.T) {
	c := complete(t, manifest)
	addrs := map[string][]string{}
	for _, p := range c.Pods() {
		for _, ip := range p.Status.PodIPs {
			addrs[p.Name+" on "+p.Spec.NodeName] = append(addrs[p.Name+" on "+p.Spec.NodeName], ip.IP)
		}
	}
	want := map[string][]string{
		"given on b":    {"10.244.0.2"},
		"free on b":     {"10.244.0.3"},
		"anywhere on a": {"10.244.1.2", "fd10:244:0:1::2"},
	}
	if diff := cmp.Diff(want, addrs); diff != "" {
		t.Errorf("addresses, want(-) got(+):\n%s", diff)
	}
	targets := map[string]int32{}
	for _, s := range c.Slices() {
		for _, e := range s.Endpoints {
			targets[e.TargetRef.Name] = *s.Ports[0].Port
		}
	}
	if diff := cmp.Diff(map[string]int32{"given": 1, "free": 2}, targets); diff != "" {
		t.Errorf("named target ports, want(-) got(+):\n%s", diff)
	}
	var namespaces []string
	for _, n := range c.Namespaces() {
		namespaces = append(namespaces, n.Name+"="+n.Labels[corev1.LabelMetadataName])
	}
	if diff := cmp.Diff([]string{"default=default", "other=other"}, slices.Sorted(slices.Values(namespaces))); diff != "" {
		t.Errorf("namespaces, want(-) got(+):\n%s", diff)
	}

	// A pod that ends leaves its Service, and one that is applied again keeps its address.
	c.Delete(Ref{Kind: "Pod", Namespace: "default", Name: "given"})
	again, err := Parse("test", []byte(
		`{apiVersion: v1, kind: Pod, metadata: {name: free, labels: {app: y}}, spec: {nodeName: b}}`))
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(again...)
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Slices()); n != 0 {
		t.Errorf("%d slices of a Service without pods", n)
	}
	if got := c.Get(Ref{Kind: "Pod", Namespace: "default", Name: "free"}).(*corev1.Pod).Status.PodIP; got != "10.244.0.3" {
		t.Errorf("the pod has the address %s, want its old one", got)
	}
}

func TestDirectory(t *testing.T) {
	c := complete(t, manifest)
	d := NewDirectory(t.TempDir())
	if err := d.Write(c); err != nil {
		t.Fatal(err)
	}
	files := func() map[string]string {
		content := map[string]string{}
		entries, err := os.ReadDir(d.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(d.Path(), e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			content[e.Name()] = string(b)
		}
		return content
	}
	first := files()
	if len(first) != len(c.All()) {
		t.Errorf("%d files of %d objects: %v", len(first), len(c.All()), slices.Sorted(maps.Keys(first)))
	}
	if !strings.Contains(first["unknown-default-u.yaml"], "two") {
		t.Errorf("an object of unknown kind was not kept: %q", first["unknown-default-u.yaml"])
	}

	// What was written reads as the same cluster, and completing that changes nothing.
	other, objects := New(), NewDirectory(d.Path())
	if changed, err := objects.Read(other); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if err := other.Complete(); err != nil {
		t.Fatal(err)
	}
	if err := objects.Write(other); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, files()); diff != "" {
		t.Errorf("want(-) got(+):\n%s", diff)
	}

	// One object in two files is an error that names both.
	if err := os.WriteFile(filepath.Join(d.Path(), "twice.yaml"), []byte(first["node-a.yaml"]), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := d.Read(c)
	if err == nil || !strings.Contains(err.Error(), "node-a.yaml") || !strings.Contains(err.Error(), "twice.yaml") {
		t.Errorf("got %v, want both files named", err)
	}
}

func TestLoadSkipsWhatIsNoManifest(t *testing.T) {
	node := &fstest.MapFile{Data: []byte(`{apiVersion: v1, kind: Node, metadata: {name: a}}`)}
	objects, err := Load(fstest.MapFS{"b/x.yml": node, ".hidden/x.yaml": node, ".x.yaml": node, "README.md": node}, ".")
	if err != nil || len(objects) != 1 {
		t.Errorf("got %v, %v, want the one node", objects, err)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"{apiVersion: v1, kind: Node}":                                      "metadata.name",
		"{apiVersion: v1, metadata: {name: x}}":                             "kind",
		"{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {nope: 1}}": "nope",
	} {
		if _, err := Parse("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error about %s", text, err, want)
		}
	}
}
