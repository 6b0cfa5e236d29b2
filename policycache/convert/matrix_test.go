package convert_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/adminnetpol"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// matrixOf puts all policies of a manifest of any dialect in force and lists what is denied.
func matrixOf(t testing.TB, manifest string) []string {
	in := map[rule.Ref]*rule.Policy{}
	apply := func(c isolation.Changes) {
		for _, p := range c.Set {
			in[p.Ref] = p
		}
		for _, r := range c.Deleted {
			delete(in, r)
		}
	}
	alphas, betas := alpha.NewSet(), beta.NewSet()
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		kind := struct{ APIVersion, Kind string }{}
		decode(t, doc, &kind)
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 Namespace":
			var o corev1.Namespace
			decode(t, doc, &o)
			apply(alphas.SetNamespace(cluster.NewNamespace(&o)))
			apply(betas.SetNamespace(cluster.NewNamespace(&o)))
		case "net.alpha.kubernetes.io/v1alpha1 NetworkPolicy":
			var o alpha.NetworkPolicy
			decode(t, doc, &o)
			apply(alphas.SetPolicy(alpha.Compile(&o)))
		case "extensions/v1beta1 NetworkPolicy":
			var o extensionsv1beta1.NetworkPolicy
			decode(t, doc, &o)
			apply(betas.SetPolicy(beta.Compile(&o)))
		case "networking.k8s.io/v1 NetworkPolicy":
			var o networkingv1.NetworkPolicy
			decode(t, doc, &o)
			in[netpol.Ref(o.Namespace, o.Name)] = netpol.Compile(&o)
		case "policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy":
			var o v1alpha1.AdminNetworkPolicy
			decode(t, doc, &o)
			in[adminnetpol.Ref(o.Name)] = adminnetpol.Compile(&o)
		case "policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy":
			var o v1alpha1.BaselineAdminNetworkPolicy
			decode(t, doc, &o)
			in[adminnetpol.BaselineRef(o.Name)] = adminnetpol.CompileBaseline(&o)
		case "policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy":
			var o v1alpha2.ClusterNetworkPolicy
			decode(t, doc, &o)
			in[clusternetpol.Ref(o.Name)] = clusternetpol.Compile(&o)
		}
	}
	return polytest.New(t, slices.Collect(maps.Values(in))...).Matrix()
}

func decode(t testing.TB, doc string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(doc), into); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
}

// The generators write flow-style YAML. Values that YAML reads as something else are quoted.
var (
	genPods  = rapid.SampledFrom([]string{"{}", "{app: web}", "{app: db}", "{app: db, tier: back}", "{app: none}"})
	genTeams = rapid.SampledFrom([]string{"{}", "{team: x}", `{team: "y"}`, "{team: z}",
		"{kubernetes.io/metadata.name: c}"})
	genBad = rapid.SampledFrom([]string{"{}", "7", "{pods: {}, namespaces: {}}", "{pods: 1}", "{nobody: {}}"})
)

func list(gen *rapid.Generator[string], most int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return "[" + strings.Join(rapid.SliceOfN(gen, 0, most).Draw(t, "list"), ", ") + "]"
	})
}

// fields writes an object; empty values are left out.
func fields(pairs ...string) string {
	var parts []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			parts = append(parts, pairs[i]+": "+pairs[i+1])
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func maybe(t *rapid.T, gen *rapid.Generator[string]) string {
	if rapid.IntRange(0, 3).Draw(t, "absent") == 0 {
		return ""
	}
	return gen.Draw(t, "value")
}

var genPort = rapid.Custom(func(t *rapid.T) string {
	return fields("port", maybe(t, rapid.SampledFrom([]string{"80", "8080", "53", "9", "http", "dns"})),
		"protocol", maybe(t, rapid.SampledFrom([]string{"TCP", "UDP", "SCTP", "tcp"})))
})

var genAlphaPolicy = rapid.Custom(func(t *rapid.T) string {
	peer := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 6).Draw(t, "peer") {
		case 0:
			return genBad.Draw(t, "bad")
		case 1, 2:
			return fields("namespaces", genTeams.Draw(t, "teams"))
		}
		return fields("pods", genPods.Draw(t, "pods"))
	})
	port := rapid.OneOf(genPort, genPort, rapid.SampledFrom([]string{"{port: 0}", "{protocol: ICMP}", "1"}))
	rules := rapid.Custom(func(t *rapid.T) string {
		return fields("from", maybe(t, list(peer, 3)), "toPorts", maybe(t, list(port, 3)),
			"unknown", rapid.SampledFrom([]string{"", "", "", "1"}).Draw(t, "unknown"))
	})
	return fields("podSelector", maybe(t, genPods), "allowIncoming", maybe(t, rapid.OneOf(rules, list(rules, 3))))
})

var genBetaPolicy = rapid.Custom(func(t *rapid.T) string {
	peer := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 5).Draw(t, "peer") {
		case 0:
			return "{}"
		case 1, 2:
			return "{namespaceSelector: {matchLabels: " + genTeams.Draw(t, "teams") + "}}"
		case 3:
			return "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}"
		}
		return "{podSelector: {matchLabels: " + genPods.Draw(t, "pods") + "}}"
	})
	port := rapid.OneOf(genPort, genPort, rapid.SampledFrom([]string{"{port: 0}", "{protocol: ICMP}"}))
	rules := rapid.Custom(func(t *rapid.T) string {
		return fields("from", maybe(t, list(peer, 3)), "ports", maybe(t, list(port, 3)))
	})
	later := rapid.SampledFrom([]string{"", "", "", "[Ingress]", "[Egress]", "[Ingress, Egress]"}).Draw(t, "policyTypes")
	return fields("podSelector", "{matchLabels: "+genPods.Draw(t, "pods")+"}", "ingress", maybe(t, list(rules, 3)),
		"policyTypes", later)
})

// TestSameMatrixLegacy: converted and original objects of the two oldest dialects give the same matrix.
func TestSameMatrixLegacy(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var docs []string
		for _, ns := range []string{"a", "b", "c"} {
			team := map[string]string{"a": "{team: x}", "b": `{team: "y"}`, "c": "{}"}[ns]
			annotations := fields(
				cluster.AnnotationIsolation, rapid.SampledFrom([]string{"", `"on"`, `"yes"`, `"off"`, `"no"`, "maybe"}).Draw(rt,
					"alpha"),
				cluster.AnnotationNetworkPolicy, rapid.SampledFrom([]string{
					"", `'{"ingress":{"isolation":"DefaultDeny"}}'`, `'{}'`, "odd",
				}).Draw(rt, "beta"))
			docs = append(docs, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: %s, "+
				"annotations: %s}}",
				ns, team, annotations))
		}
		name := rapid.SampledFrom([]string{"p", "q", "default-deny-ingress"})
		used := map[string]bool{}
		add := func(version, spec string) {
			ns, n := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "namespace"), name.Draw(rt, "name")
			if used[version+ns+n] {
				return
			}
			used[version+ns+n] = true
			docs = append(docs, fmt.Sprintf("{apiVersion: %s, kind: NetworkPolicy, metadata: {name: %s, namespace: %s}, "+
				"spec: %s}",
				version, n, ns, spec))
		}
		for range rapid.IntRange(0, 4).Draw(rt, "alphas") {
			add("net.alpha.kubernetes.io/v1alpha1", genAlphaPolicy.Draw(rt, "spec"))
		}
		for range rapid.IntRange(0, 4).Draw(rt, "betas") {
			add("extensions/v1beta1", genBetaPolicy.Draw(rt, "spec"))
		}
		sameMatrix(t, rt, strings.Join(docs, "\n---\n"))
	})
}

func sameMatrix(t *testing.T, rt *rapid.T, in string) {
	out := convertText(rt, in)
	for _, old := range []string{"extensions/v1beta1\n", "net.alpha.kubernetes.io/v1alpha1\n", "v1alpha1\nkind"} {
		if strings.Contains(out, "apiVersion: "+old) {
			rt.Fatalf("an old object in the output:\n%s", out)
		}
	}
	if diff := cmp.Diff(matrixOf(t, in), matrixOf(t, out)); diff != "" {
		rt.Fatalf("(-input +output)\n%s\ninput:\n%s\n\noutput:\n%s", diff, in, out)
	}
}

var genTieredRule = func(peers string, actions ...string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		peer := rapid.Custom(func(t *rapid.T) string {
			kinds := 1
			if peers == "to" {
				kinds = 3
			}
			switch rapid.IntRange(0, kinds).Draw(t, "peer") {
			case 0:
				return "{namespaces: {matchLabels: " + genTeams.Draw(t, "teams") + "}}"
			case 1:
				return "{pods: {namespaceSelector: {matchLabels: " + genTeams.Draw(t,
					"teams") + "}, podSelector: {matchLabels: " + genPods.Draw(t, "pods") + "}}}"
			case 2:
				return "{nodes: {matchLabels: " + rapid.SampledFrom([]string{"{}", "{role: edge}"}).Draw(t, "nodes") + "}}"
			}
			return "{networks: [" + rapid.SampledFrom([]string{"10.0.0.0/8, '::/0'", "10.0.4.0/22", "10.0.2.7/32"}).Draw(t,
				"networks") + "]}"
		})
		from := rapid.SliceOfN(peer, 1, 3).Draw(t, "peers")
		ports := []string{
			"", "", "[{portNumber: {port: 80}}]", "[{portNumber: {protocol: UDP, port: 53}}, {portNumber: {protocol: SCTP, " +
				"port: 9}}]",
			"[{portRange: {start: 80, end: 8080}}]",
		}
		if peers == "from" {
			ports = append(ports, "[{namedPort: http}, {namedPort: dns}]")
		}
		return fields("name", rapid.SampledFrom([]string{"", "r"}).Draw(t, "name"), "action",
			rapid.SampledFrom(actions).Draw(t, "action"),
			peers, "["+strings.Join(from, ", ")+"]", "ports", rapid.SampledFrom(ports).Draw(t, "ports"))
	})
}

// TestSameMatrixTiers: converted and original objects of v1alpha1 give the same matrix.
func TestSameMatrixTiers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const version = "apiVersion: policy.networking.k8s.io/v1alpha1, kind: "
		subject := rapid.Custom(func(t *rapid.T) string {
			if rapid.Bool().Draw(t, "pods") {
				return "{pods: {namespaceSelector: {matchLabels: " + genTeams.Draw(t,
					"teams") + "}, podSelector: {matchLabels: " + genPods.Draw(t, "pods") + "}}}"
			}
			return "{namespaces: {matchLabels: " + genTeams.Draw(t, "teams") + "}}"
		})
		var docs []string
		for i := range rapid.IntRange(0, 4).Draw(rt, "admins") {
			actions := []string{"Allow", "Deny", "Pass"}
			docs = append(docs, fmt.Sprintf("{%sAdminNetworkPolicy, metadata: {name: p%d}, spec: %s}", version, i, fields(
				"priority", fmt.Sprint(rapid.IntRange(0, 3).Draw(rt, "priority")), "subject", subject.Draw(rt, "subject"),
				"ingress", list(genTieredRule("from", actions...), 3).Draw(rt, "ingress"),
				"egress", list(genTieredRule("to", actions...), 3).Draw(rt, "egress"))))
		}
		if rapid.Bool().Draw(rt, "baseline") {
			docs = append(docs, fmt.Sprintf("{%sBaselineAdminNetworkPolicy, metadata: {name: default}, spec: %s}", version,
				fields(
					"subject", subject.Draw(rt, "subject"),
					"ingress", list(genTieredRule("from", "Allow", "Deny"), 3).Draw(rt, "ingress"),
					"egress", list(genTieredRule("to", "Allow", "Deny"), 3).Draw(rt, "egress"))))
		}
		sameMatrix(t, rt, strings.Join(docs, "\n---\n"))
	})
}
