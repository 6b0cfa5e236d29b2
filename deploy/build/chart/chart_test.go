package chart

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const dir = "../../chart/firstpacket"

// full are values with everything switched on.
func full(t *testing.T) map[string]any {
	t.Helper()
	b, err := os.ReadFile("../testdata/full.values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

func TestLint(t *testing.T) {
	for name, values := range map[string]map[string]any{"default": nil, "full": full(t)} {
		for _, said := range Lint(dir, values) {
			if !strings.Contains(said, "icon is recommended") {
				t.Errorf("%s values: %s", name, said)
			}
		}
	}
}

// TestValues also holds values.yaml and the schema to each other, and testdata/full.values.yaml to both.
func TestValues(t *testing.T) {
	values, err := Values(dir)
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	b, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &defaults); err != nil {
		t.Fatal(err)
	}
	other := full(t)
	for _, v := range values {
		path := strings.Split(v.Key, ".")
		if reflect.DeepEqual(lookup(defaults, path), lookup(other, path)) {
			t.Errorf("testdata/full.values.yaml leaves %s at its default", v.Key)
		}
	}
}

func lookup(values map[string]any, path []string) any {
	v := values[path[0]]
	if len(path) == 1 {
		return v
	}
	inner, _ := v.(map[string]any)
	return lookup(inner, path[1:])
}

func TestRefusedValues(t *testing.T) {
	for name, values := range map[string]string{
		"misspelt":                `{agent: {denywith: reject}}`,
		"unknown":                 `{hostNetwork: false}`,
		"not one of":              `{agent: {denyWith: ignore}}`,
		"mask as a number":        `{agent: {markMask: 1056964608}}`,
		"digest":                  `{image: {digest: v1}}`,
		"too many queues":         `{agent: {queues: 100}}`,
		"a monitor of no address": `{metrics: {podMonitor: true}}`,
		"a service of no address": `{metrics: {serviceMonitor: true}}`,
	} {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		if _, err := Render(dir, v, Release{Name: "firstpacket", Namespace: "ns"}); err == nil {
			t.Errorf("%s: %s was rendered", name, values)
		}
	}
}

// TestHelm: a release of Helm's says so, and has the namespace it is given.
func TestHelm(t *testing.T) {
	out, err := Render(dir, nil, Release{Name: "mine", Namespace: "kube-system", Service: "Helm"})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for text := range strings.SplitSeq(string(out), "\n---\n") {
		var o struct {
			Kind     string
			Metadata struct {
				Namespace string
				Labels    map[string]string
			}
		}
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, o.Kind)
		if o.Metadata.Labels["app.kubernetes.io/managed-by"] != "Helm" ||
			o.Metadata.Labels["app.kubernetes.io/instance"] != "mine" {
			t.Errorf("%s: labels %v", o.Kind, o.Metadata.Labels)
		}
		if namespaced := !strings.HasPrefix(o.Kind, "Cluster"); namespaced != (o.Metadata.Namespace == "kube-system") {
			t.Errorf("%s is in namespace %q", o.Kind, o.Metadata.Namespace)
		}
	}
	want := []string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "DaemonSet"}
	if !slices.Equal(kinds, want) {
		t.Errorf("objects %v, want %v", kinds, want)
	}
}
