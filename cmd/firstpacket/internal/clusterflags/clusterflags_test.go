package clusterflags

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/explain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// objects of the server, by the path of their list.
var objects = map[string]string{
	"/api/v1/namespaces": `{"kind":"NamespaceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
		{"metadata":{"name":"shop"}}]}`,
	"/api/v1/nodes": `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
		{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.0.0.0/24"]}}]}`,
	"/api/v1/pods": `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
		{"metadata":{"name":"web","namespace":"shop","labels":{"app":"web"}},"spec":{"nodeName":"n1"},
		 "status":{"phase":"Running","podIPs":[{"ip":"10.0.0.1"}]}},
		{"metadata":{"name":"db","namespace":"shop","labels":{"app":"db"}},"spec":{"nodeName":"n1"},
		 "status":{"phase":"Running","podIPs":[{"ip":"10.0.0.2"}]}}]}`,
	"/api/v1/services": `{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
		{"metadata":{"name":"db","namespace":"shop"},
		 "spec":{"selector":{"app":"db"},"ports":[{"port":80,"protocol":"TCP","targetPort":5432}]}}]}`,
	"/apis/networking.k8s.io/v1/networkpolicies": `{"kind":"NetworkPolicyList","apiVersion":"networking.k8s.io/v1",
		"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"db","namespace":"shop"},
		"spec":{"podSelector":{"matchLabels":{"app":"db"}},"policyTypes":["Ingress"]}}]}`,
}

// server lists objects and has nothing to tell to those who watch; other resources are absent.
func server(t *testing.T, without string) (kubeconfig string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		list, known := objects[r.URL.Path]
		switch {
		case r.URL.Path == "/version":
			fmt.Fprint(w, `{"major":"1"}`)
		case !known:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		case r.URL.Path == without:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
		case r.URL.Query().Get("watch") == "" || r.URL.Query().Get("sendInitialEvents") == "true":
			if r.URL.Query().Get("watch") != "" { // asked for as a stream, which an old server refuses
				w.WriteHeader(http.StatusUnprocessableEntity)
				fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
				return
			}
			fmt.Fprint(w, list)
		default:
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(srv.Close)
	config := map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "here",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": srv.URL}}},
		"contexts": []any{
			map[string]any{"name": "here", "context": map[string]any{"cluster": "c", "namespace": "shop"}},
			map[string]any{"name": "bare", "context": map[string]any{"cluster": "c"}},
		},
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig = filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kubeconfig, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// parse reads flags as a command would.
func parse(t *testing.T, args ...string) *Flags {
	t.Helper()
	f := new(Flags)
	cmd := &cobra.Command{}
	f.Add(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestServer(t *testing.T) {
	config := server(t, "")
	for _, c := range []struct {
		args      []string
		namespace string
	}{
		{[]string{"--kubeconfig", config}, "shop"},
		{[]string{"--kubeconfig", config, "--context", "bare"}, "default"},
		{[]string{"--kubeconfig", config, "-n", "other"}, "other"},
	} {
		f := parse(t, c.args...)
		f.WithServices = true
		loaded, err := f.Load(t.Context(), "test", io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if loaded.Namespace != c.namespace {
			t.Errorf("%v: namespace %s", c.args, loaded.Namespace)
		}
		a, err := explain.Ask(loaded.Asked(), explain.Question{From: "shop/web", To: "svc/shop/db", Port: "80"})
		if err != nil || a.Verdict.String() != "deny" || a.Flows[0].Destination.Port != 5432 {
			t.Errorf("%v %+v", err, a)
		}
		if w := loaded.World(); len(w.Policies) != 1 || len(w.PodCIDRs) != 1 {
			t.Errorf("%+v", w)
		}
	}
}

func TestServerThatForbids(t *testing.T) {
	f := parse(t, "--kubeconfig", server(t, "/api/v1/pods"), "--timeout", "2s")
	_, err := f.Load(t.Context(), "test", nil)
	var missing *source.NotSyncedError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "check that you may list and watch") ||
		!strings.Contains(err.Error(), "Pod") {
		t.Error(err)
	}
	f = parse(t, "--kubeconfig", server(t, "/api/v1/services"))
	if _, err := f.Load(t.Context(), "test", nil); err != nil {
		t.Errorf("services are not asked for, and yet: %v", err)
	}
}

func TestNoServer(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	if _, err := parse(t).Load(t.Context(), "test", nil); err == nil || !strings.Contains(err.Error(), "--manifests") {
		t.Error(err)
	}
	f := parse(t, "--kubeconfig", server(t, ""), "--context", "none")
	if _, err := f.Load(t.Context(), "test", nil); err == nil || !strings.Contains(err.Error(), `"none"`) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer stuck.Close()
	config := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"c","cluster":{"server":"` +
		stuck.URL + `"}}],"contexts":[{"name":"x","context":{"cluster":"c"}}]}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := parse(t, "--kubeconfig", config).Load(ctx, "test", nil); err == nil {
		t.Error("a server that does not answer")
	}
}
