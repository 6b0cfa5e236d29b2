package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// write fills a directory: names and contents in turn.
func write(t testing.TB, dir string, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		path := filepath.Join(dir, pairs[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(pairs[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// names lists the objects as Kind namespace/name.
func names(o Objects) string {
	var out []string
	for _, l := range o.List {
		out = append(out, describe(l.Kind.Kind, l.Object.GetNamespace(), l.Object.GetName()))
	}
	return strings.Join(out, ", ")
}

func podYAML(name string, rest ...string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: " + name + "}\n" + strings.Join(rest, "\n") + "\n"
}

func policyYAML(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: " + spec + "\n"
}

func TestLoadDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir,
		"shop/pods.yaml", "# the shop\n---\n"+podYAML("web")+"---\n# nothing here\n---\n"+podYAML("db"),
		"shop/deep/er/node.yml", "{apiVersion: v1, kind: Node, metadata: {name: n1}}",
		"list.json", `{"apiVersion":"v1","kind":"List","items":[
			{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}},
			{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x"}}]}
			{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"typed"}}]}`,
		"policy.yaml", policyYAML("{podSelector: {}}"),
		"README.md", "not a manifest",
		".hidden.yaml", "not: [a manifest",
		".git/config.yaml", "not: [a manifest",
		"pods.yaml~", "not: [a manifest",
		"comment.yaml", "# nothing\n",
	)
	objects, problems := Load(dir)
	if problems != nil {
		t.Fatal(problems.Err())
	}
	want := "Namespace shop, NetworkPolicy default/p, Node n1, Pod default/typed, Pod shop/db, Pod shop/web"
	if got := names(objects); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := fmt.Sprint(objects.Ignored); got != "[apps/v1, Kind=Deployment]" {
		t.Errorf("ignored: %s", got)
	}
	for _, l := range objects.List {
		if l.Object.GetName() == "db" && (filepath.Base(l.File) != "pods.yaml" || l.Document != 3 || l.Line != 9) {
			t.Errorf("place of db: %+v", l)
		}
	}
	if len(objects.Pods()) != 3 || len(objects.Nodes()) != 1 || len(objects.Services()) != 0 ||
		len(objects.Namespaces()) != 1 || len(objects.NetworkPolicies()) != 1 {
		t.Errorf("by type: %s", names(objects))
	}
}

func TestLoadDefaults(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "all.yaml", strings.Join([]string{
		policyYAML("{podSelector: {}, egress: [{ports: [{port: 53}]}]}"),
		"{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n",
		"{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.0.0/24}}\n",
		podYAML("web", "spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}", "status: {podIP: 10.0.0.1}"),
		"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}}\n",
	}, "---\n"))
	objects, problems := Load(dir)
	if problems != nil {
		t.Fatal(problems.Err())
	}
	np := objects.NetworkPolicies()[0].Spec
	if fmt.Sprint(np.PolicyTypes) != "[Ingress Egress]" || *np.Egress[0].Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("policy: %+v", np)
	}
	if got := objects.Namespaces()[0].Labels["kubernetes.io/metadata.name"]; got != "shop" {
		t.Errorf("namespace label: %q", got)
	}
	if got := objects.Nodes()[0].Spec.PodCIDRs; len(got) != 1 {
		t.Errorf("pod CIDRs: %v", got)
	}
	pod := objects.Pods()[0]
	if len(pod.Status.PodIPs) != 1 || pod.Spec.Containers[0].Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("pod: %+v", pod)
	}
	svc := objects.Services()[0].Spec
	if svc.Ports[0].TargetPort.IntVal != 80 || svc.Ports[0].Protocol != corev1.ProtocolTCP ||
		svc.ClusterIPs[0] != "10.1.0.1" {
		t.Errorf("service: %+v", svc)
	}
}

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

func TestLoadPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a/pods.yaml", podYAML("web"), "b.manifest", podYAML("db"), "c.yaml", podYAML("web"))
	at := func(rel string) string { return filepath.Join(dir, rel) }

	objects, problems := Load(at("a"), at("b.manifest"))
	if names(objects) != "Pod shop/db, Pod shop/web" || problems != nil {
		t.Errorf("%s %v", names(objects), problems.Err())
	}
	_, problems = Load(at("a"), at("c.yaml"))
	if len(problems) != 1 || problems[0].File != at("c.yaml") || !strings.Contains(problems[0].Detail, at("a/pods.yaml")) {
		t.Errorf("duplicate between paths: %v", problems.Err())
	}
	_, problems = Load(at("missing"))
	if len(problems) != 1 || !os.IsNotExist(problems[0].Err) {
		t.Errorf("missing: %v", problems.Err())
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

func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pods.yaml", podYAML("web"), "elsewhere/target", podYAML("linked"))
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere/target", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(dir, "elsewhere", "loop")); err != nil {
		t.Fatal(err)
	}
	objects, problems := Load(dir)
	if names(objects) != "Pod shop/linked, Pod shop/web" {
		t.Errorf("objects: %s", names(objects))
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "dangling.yaml: cannot be read: no such file") {
		t.Errorf("problems: %v", problems.Err())
	}
}

func TestSplit(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want string // number@line:content
	}{
		"one":               {"a: 1\n", "1@1:a: 1"},
		"leading marker":    {"---\na: 1\n", "1@1:a: 1"},
		"comment first":     {"# x\n---\na: 1\n---\nb: 2", "1@2:a: 1 2@4:b: 2"},
		"empty between":     {"a: 1\n---\n---\nb: 2\n", "1@1:a: 1 2@2: 3@3:b: 2"},
		"end markers":       {"a: 1\n...\n---\nb: 2\n...\n", "1@1:a: 1 2@3:b: 2"},
		"content on marker": {"--- {a: 1}\n--- # c\nb: 2\n", "1@1:{a: 1} 2@2:# c\nb: 2"},
		"carriage returns":  {"a: 1\r\n---\r\nb: 2\r\n", "1@1:a: 1 2@2:b: 2"},
		"no marker":         {"a: |\n  ---\n  x\n----\n", "1@1:a: |\n  ---\n  x\n----"},
		"JSON stream":       {"{\"a\":1}\n\n{\"b\":\n2}", "1@1:{\"a\":1} 2@3:{\"b\":\n2}"},
		"flow YAML":         {"{a: 1}\n---\nb: 2", "1@1:{a: 1} 2@2:b: 2"},
		"byte order mark":   {"\xef\xbb\xbfa: 1", "1@1:a: 1"},
		"empty":             {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, d := range split([]byte(c.in)) {
				got = append(got, fmt.Sprintf("%d@%d:%s", d.number, d.line, strings.TrimSpace(string(d.raw))))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got  %q\nwant %q", strings.Join(got, " "), c.want)
			}
		})
	}
}

func TestDigest(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	digestOf := func(dir string) string {
		t.Helper()
		d, err := Digest(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	write(t, a, "x/1.yaml", "one", "2.yaml", "two", "notes.txt", "a")
	write(t, b, "x/1.yaml", "one", "2.yaml", "two", "notes.txt", "b")
	if digestOf(a) != digestOf(b) {
		t.Error("equal manifests, other digests")
	}
	write(t, b, "2.yaml", "three")
	if digestOf(a) == digestOf(b) {
		t.Error("other content, one digest")
	}
	write(t, b, "2.yaml", "two", "3.yaml", "")
	if digestOf(a) == digestOf(b) {
		t.Error("one more file, one digest")
	}
	if _, err := Digest(filepath.Join(a, "missing")); err == nil {
		t.Error("no error for a directory that does not exist")
	}
}

func TestLoadedPolicyIsTyped(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.yaml", policyYAML("{podSelector: {matchLabels: {app: web}}, ingress: []}"))
	objects, _ := Load(dir)
	np := Of[*networkingv1.NetworkPolicy](objects)[0]
	if np.Kind != "NetworkPolicy" || np.APIVersion != "networking.k8s.io/v1" || np.Namespace != "default" ||
		np.Spec.PodSelector.MatchLabels["app"] != "web" {
		t.Errorf("%+v", np)
	}
}

// FuzzLoad holds that any bytes are either objects or problems, and that no bytes are both for one file.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"", "---\n", "{", "[", "a: &a [*a]", "%YAML 1.2\n---\na: 1", podYAML("a"), podYAML("a") + "---\n" + podYAML("b"),
		policyYAML("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}"),
		policyYAML("{podSelector: {}, egress: [{ports: [{port: 1, endPort: 2}, {port: web, protocol: UDP}]}]}"),
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}]}`,
		"{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: ['fd00::/64']}}",
		"{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}",
		"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: None, ports: [{port: 80, targetPort: web}]}}",
		"{apiVersion: v1, kind: Pod, metadata: {name: a, creationTimestamp: x}}", "\x00", "? ", "!!binary x: y", "<<: 1",
	} {
		f.Add([]byte(seed))
	}
	r := newRegistry(nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := r.parse(raw, nil)
		for _, p := range c.located("f") {
			if p.Detail == "" || !strings.HasPrefix(p.Error(), "f: ") {
				t.Errorf("a problem that says nothing: %+v", p)
			}
		}
		for _, o := range c.objects {
			if o.object.GetName() == "" || o.kind.Namespaced != (o.object.GetNamespace() != "") {
				t.Errorf("an object without a proper name: %+v", o.object)
			}
		}
		again := r.parse(raw, c)
		if len(again.objects) != len(c.objects) || len(again.problems) != len(c.problems) {
			t.Error("parsing again gives something else")
		}
	})
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
