package deploy

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// stageSteps are the script's steps that are no commands.
func stageSteps() map[string]func(*stage) {
	return map[string]func(*stage){
		"registry": (*stage).registry,
		"page":     (*stage).page,
		"files":    (*stage).files,
		"closed":   (*stage).closed,
		"open":     (*stage).open,
		"logs":     func(s *stage) { s.sh("kubectl -n firstpacket logs POD | tee node-a.log node-b.log > flows.log") },
		"alpha":    func(s *stage) { s.sh("kubectl apply -f namespace.yaml -f policies.yaml") },

		"prometheus": (*stage).prometheus,
		"exposed":    (*stage).exposed,
		"stopped":    (*stage).stopped,
		"cleaned":    (*stage).cleaned,
	}
}

// until acts for the node's kubelet until the answer is yes.
func (s *stage) until(what string, yes func() bool) {
	s.Helper()
	eventually(s.T, what, func() bool {
		s.pods.sync(s.T)
		return yes()
	})
}

// registry is one of images, at the laptop.
func (s *stage) registry() {
	s.background("crane registry serve --address 127.0.0.1:5000")
	s.until("the registry", func() bool { return s.get(s.laptop.NS(), "http://127.0.0.1:5000/v2/_catalog") != "" })
}

// get is what a URL has, as seen from a namespace: empty if there is nothing.
func (s *stage) get(from *ns.Namespace, url string) string {
	s.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, _, a string) (net.Conn, error) { return dial(from, a) },
	}}
	req, err := http.NewRequestWithContext(s.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		s.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// page wants the web page at the laptop.
func (s *stage) page() {
	if body := s.get(s.laptop.NS(), "http://127.0.0.1:9098/"); !strings.Contains(body, "<title>firstpacket") {
		s.Errorf("no page: %q", body)
	}
}

// files makes those that the examples name.
func (s *stage) files() {
	const change = "cmd/firstpacket/testdata/change/tenant-a.yaml"
	raw, err := os.ReadFile(filepath.Join(s.dir, change))
	if err != nil {
		s.Fatal(err)
	}
	namespace, policies, _ := strings.Cut(string(raw), "\n---\n")
	for name, content := range map[string]string{
		"namespace.yaml": namespace, "policies.yaml": policies,
		// As the one that there is, and lets nobody in.
		"policy.yaml": `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`,
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			s.Fatal(err)
		}
	}
	s.sh("mkdir cluster && cp cluster.yaml cluster/")
}

// closed wants the policy in force.
func (s *stage) closed() {
	s.until("the other port is closed", func() bool { return !s.n.reaches(other) })
	if !s.n.reaches(database) {
		s.Error("the database cannot be reached")
	}
}

// open wants nothing in force.
func (s *stage) open() {
	s.until("the other port is open", func() bool { return s.n.reaches(other) })
}

// prometheus gives the API server the kinds of the Prometheus operator, as far as they matter here.
func (s *stage) prometheus() {
	var b strings.Builder
	for plural, kind := range map[string]string{"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"} {
		b.WriteString(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ` + plural + `.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {plural: ` + plural + `, kind: ` + kind + `}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
`)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "operator.yaml"), []byte(b.String()), 0o600); err != nil {
		s.Fatal(err)
	}
	s.sh("kubectl apply -f operator.yaml && kubectl wait --for condition=established crd --all --timeout 30s")
}

// exposed wants the metrics at the node's address, and what is to be read by Prometheus and Grafana.
func (s *stage) exposed() {
	s.until("metrics at the node's address", func() bool {
		return strings.Contains(s.get(s.laptop.NS(), "http://"+nodeAddress+":9099/metrics"), "firstpacket_ready 1")
	})
	s.sh("kubectl -n firstpacket get podmonitors,prometheusrules,configmaps -o name | grep -c firstpacket | grep -qx 3")
}

// stopped wants the agents gone, and the policy still in force.
func (s *stage) stopped() {
	s.until("the agents are gone", func() bool {
		pods, err := s.c.client.CoreV1().Pods("firstpacket").List(s.Context(), metav1.ListOptions{})
		return err == nil && len(pods.Items) == 0
	})
	if s.n.reaches(other) {
		s.Error("without an agent, what was denied is allowed")
	}
}

// cleaned wants the cleanup done.
func (s *stage) cleaned() {
	s.until("the cleanup has ended", func() bool {
		pods, err := s.c.client.CoreV1().Pods("default").List(s.Context(), metav1.ListOptions{})
		return err == nil && len(pods.Items) == 1 && pods.Items[0].Status.Phase == corev1.PodSucceeded
	})
	s.open()
}
