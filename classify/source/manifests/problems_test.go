package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestProblems has one line for each thing that can be wrong with a document, and what is said of it.
func TestProblems(t *testing.T) {
	peer := func(s string) string { return policyYAML("{podSelector: {}, ingress: [{from: [" + s + "]}]}") }
	port := func(s string) string { return policyYAML("{podSelector: {}, ingress: [{ports: [" + s + "]}]}") }
	for name, c := range map[string]struct{ doc, want string }{
		"not YAML":      {"a: [", "yaml: line 1: did not find expected node content"},
		"duplicate key": {podYAML("a", "spec: {nodeName: x, nodeName: y}"), "already set in map"},
		"scalar":        {"hello", "must be an object with apiVersion and kind"},
		"no kind":       {"apiVersion: v1", "kind: is missing"},
		"no apiVersion": {"kind: Pod", "apiVersion: is missing"},
		"other version": {"{apiVersion: networking.k8s.io/v1beta1, kind: NetworkPolicy}", "write networking.k8s.io/v1"},
		"odd version":   {"{apiVersion: a/b/c, kind: Pod}", "apiVersion: unexpected GroupVersion"},
		"no name":       {"{apiVersion: v1, kind: Pod}", "metadata.name: Required"},
		"bad name":      {podYAML("A_B"), "Pod shop/A_B: metadata.name: Invalid"},
		"bad label": {
			"{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {a: b c}}}",
			"metadata.labels: Invalid",
		},
		"namespaced node": {
			"{apiVersion: v1, kind: Node, metadata: {name: a, namespace: b}}",
			"metadata.namespace: Forbidden",
		},
		"unknown field": {podYAML("a", "spec: {nodeNam: x}"), "Pod shop/a: spec.nodeNam: unknown field"},
		"case matters":  {podYAML("a", "spec: {NodeName: x}"), "spec.NodeName: unknown field"},
		"unknown in list": {
			"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, x: 1, metadata: {name: a}}]}",
			"items[0].x: unknown field",
		},
		"wrong type": {podYAML("a", "spec: {nodeName: [x]}"), "spec.nodeName: must be of type string, not array"},
		"deep lists": {
			strings.Repeat("{apiVersion: v1, kind: List, items: [", 6) + strings.Repeat("]}", 6),
			"nested too deeply",
		},
		"twice in a file": {podYAML("a") + "---\n" + podYAML("a"), "is in document 1 (line 1) too"},
		"pod address":     {podYAML("a", "status: {podIPs: [{ip: 10.0.0.256}]}"), "status.podIPs[0]: Invalid"},
		"leading zeros":   {podYAML("a", "status: {podIP: 010.0.0.1}"), "status.podIPs[0]: Invalid"},
		"one family twice": {
			podYAML("a", "status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}"),
			"only one of its address family",
		},
		"podIP differs": {
			podYAML("a", "status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.1}]}"),
			"must be the first of podIPs",
		},
		"pod phase": {podYAML("a", "status: {phase: Gone}"), "status.phase: Unsupported"},
		"container port": {
			podYAML("a", "spec: {containers: [{name: c, ports: [{containerPort: 65536}]}]}"),
			"ports[0].containerPort: Invalid",
		},
		"port name": {
			podYAML("a", "spec: {containers: [{name: c, ports: [{containerPort: 1, name: a_b}]}]}"),
			"ports[0].name: Invalid",
		},
		"port protocol": {
			podYAML("a", "spec: {containers: [{name: c, ports: [{containerPort: 1, protocol: tcp}]}]}"),
			"protocol: Unsupported",
		},
		"port name twice": {
			podYAML("a", "spec: {containers: [{name: c, ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]}]}"),
			"ports[1].name: Duplicate",
		},
		"node CIDR": {
			"{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.0.0.0]}}",
			"spec.podCIDRs[0]: Invalid",
		},
		"node address": {
			"{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: x}]}}",
			"status.addresses[0].address: Invalid",
		},
		"service port": {
			"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 0}]}}",
			"spec.ports[0].port: Invalid",
		},
		"empty peer":         {peer("{}"), "spec.ingress[0].from[0]: Required"},
		"block and selector": {peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"), "from[0]: Forbidden"},
		"no CIDR":            {peer("{ipBlock: {}}"), "ipBlock.cidr: Required"},
		"bad CIDR":           {peer("{ipBlock: {cidr: 10.0.0.0/33}}"), "ipBlock.cidr: Invalid"},
		"CIDR with zeros":    {peer("{ipBlock: {cidr: 010.0.0.0/8}}"), "ipBlock.cidr: Invalid"},
		"mapped CIDR":        {peer("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}"), "ipBlock.cidr: Invalid"},
		"except outside":     {peer("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"), "ipBlock.except[0]: Invalid"},
		"except is all":      {peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"), "strict subset"},
		"operator": {
			peer("{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}"),
			"matchExpressions[0].operator: Invalid",
		},
		"no values": {
			peer("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"),
			"matchExpressions[0].values: Required",
		},
		"port range":       {port("{port: 70000}"), "spec.ingress[0].ports[0].port: Invalid"},
		"bad port name":    {port("{port: not_a_name}"), "ports[0].port: Invalid"},
		"policy protocol":  {port("{protocol: ICMP}"), "ports[0].protocol: Unsupported"},
		"endPort below":    {port("{port: 80, endPort: 79}"), "ports[0].endPort: Invalid"},
		"endPort and name": {port("{port: web, endPort: 79}"), "named port"},
		"endPort alone":    {port("{endPort: 79}"), "needs port"},
		"endPort too big":  {port("{port: 80, endPort: 65536}"), "ports[0].endPort: Invalid"},
		"policy type":      {policyYAML("{podSelector: {}, policyTypes: [ingress]}"), "spec.policyTypes[0]: Unsupported"},
		"policy type twice": {
			policyYAML("{podSelector: {}, policyTypes: [Egress, Egress]}"),
			"spec.policyTypes[1]: Duplicate",
		},
		"misspelt selector": {policyYAML("{podSelectors: {}}"), "NetworkPolicy default/p: spec.podSelectors: unknown field"},
		"empty file":        {" \n", "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "f.yaml", c.doc, "good.yaml", podYAML("good"))
			objects, problems := Load(dir)
			if len(problems) == 0 {
				t.Fatal("no problem")
			}
			got := problems[0].Error()
			if !strings.HasPrefix(got, filepath.Join(dir, "f.yaml")+": ") || !strings.Contains(got, c.want) {
				t.Errorf("got %s\nwant … %s", got, c.want)
			}
			if names(objects) != "Pod shop/good" {
				t.Errorf("objects: %s", names(objects))
			}
		})
	}
}

func TestProblemsNameEveryField(t *testing.T) {
	dir := t.TempDir()
	spec := "{podSelector: {}, ingress: [{ports: [{port: 0}, {port: 80, endPort: 1}]}], x: 1}"
	write(t, dir, "f.yaml", "\n\n---\n"+policyYAML(spec))
	_, problems := Load(dir)
	var got []string
	for _, p := range problems {
		if p.Document != 1 || p.Line != 3 {
			t.Errorf("place: %+v", p)
		}
		got = append(got, p.Field)
	}
	if want := "spec.ingress[0].ports[0].port spec.ingress[0].ports[1].endPort spec.x"; strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestSyntaxErrorsCountLinesOfTheFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "f.yaml", podYAML("a")+"---\na: 1\nb: 2\na: 3\nb: 4\n")
	_, problems := Load(dir)
	want := `document 2 (line 5): yaml: unmarshal errors:` +
		`; line 8: key "a" already set in map; line 9: key "b" already set in map`
	if len(problems) != 1 || !strings.HasSuffix(problems[0].Error(), want) {
		t.Errorf("got  … %v\nwant … %s", problems.Err(), want)
	}
}

func TestDuplicateInTwoFilesNamesBoth(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", podYAML("web"), "b.yaml", podYAML("other")+"---\n"+podYAML("web"))
	objects, problems := Load(dir)
	want := filepath.Join(dir, "b.yaml") + ": document 2 (line 5): Pod shop/web: is in a.yaml: document 1 (line 1) too"
	if len(problems) != 1 || problems[0].Error() != want {
		t.Errorf("got  %v\nwant %s", problems.Err(), want)
	}
	if names(objects) != "Pod shop/web" {
		t.Errorf("objects: %s", names(objects))
	}
}

func TestKindsThatAreExplained(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", podYAML("web")+"---\n{apiVersion: old/v1, kind: Thing, metadata: {name: t}, odd: true}\n",
		"b.yaml", "{apiVersion: old/v1, kind: ThingList, items: [{metadata: {name: u, namespace: old}}]}")
	kinds := append(Kinds(), Kind{
		GroupVersionKind: schema.GroupVersionKind{Group: "old", Version: "v1", Kind: "Thing"}, Resource: "things",
		Explain: func(name string) string { return name + " is of no use any more" },
	})
	objects, problems := LoadKinds(kinds, dir)
	if problems != nil {
		t.Fatal(problems.Err())
	}
	var got []string
	for _, n := range objects.Notes {
		n.File = filepath.Base(n.File)
		got = append(got, n.String())
	}
	want := []string{
		"a.yaml: document 2 (line 5): Thing t: t is of no use any more",
		"b.yaml: document 1 (line 1): Thing old/u: u is of no use any more",
	}
	if !slices.Equal(got, want) || names(objects) != "Pod shop/web" || objects.Ignored != nil {
		t.Errorf("notes %q, want %q; objects %s, ignored %v", got, want, names(objects), objects.Ignored)
	}
}

func TestNotesAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	const thing = "{apiVersion: old/v1, kind: Thing, metadata: {name: %s}}\n"
	write(t, dir, "a.yaml", fmt.Sprintf(thing, "t"))
	states := make(chan State, 8)
	s, err := Open(dir, Options{
		Kinds: []Kind{{
			GroupVersionKind: schema.GroupVersionKind{Group: "old", Version: "v1", Kind: "Thing"}, Resource: "things",
			Explain: func(name string) string { return name },
		}},
		OnLoad: func(st State) { states <- st },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if st := <-states; len(st.Notes) != 1 || st.Notes[0].Text != "t" {
		t.Errorf("notes %v", st.Notes)
	}
	write(t, dir, ".b.yaml", fmt.Sprintf(thing, "u"))
	must(t, os.Rename(filepath.Join(dir, ".b.yaml"), filepath.Join(dir, "b.yaml")))
	if st := <-states; len(st.Notes) != 1 || st.Notes[0].Text != "u" {
		t.Errorf("notes %v", st.Notes)
	}
}
