package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
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
