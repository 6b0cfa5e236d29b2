package explain

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/policycache/term"
)

var update = flag.Bool("update", false, "write the golden files anew")

// shop is the cluster of testdata/shop.yaml, as the agent of a node sees it or, for "", as it is.
func shop(t *testing.T, node string) Cluster {
	t.Helper()
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), filepath.Join("testdata", "shop.yaml"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	changes, err := state.Of(objects)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, _ := state.New(node).Apply(changes)
	return Cluster{Snapshot: snapshot, Services: objects.Services()}
}

// outcome is what an answer comes to: the verdict and, for each flow, its ends and reason.
func outcome(a *Answer) string {
	lines := []string{a.Verdict.String()}
	for i := range a.Flows {
		x := &a.Flows[i]
		lines = append(lines, strings.Join([]string{
			x.Source.Addr.String(), x.Destination.Addr.String(), portOf(x), x.Action.String(), x.Reason.String(),
		}, " "))
	}
	return strings.Join(lines, "\n")
}

func TestQuestions(t *testing.T) {
	c := shop(t, "")
	for name, test := range map[string]struct {
		q    Question
		want []string
	}{
		"pods": {
			Question{From: "shop/web-1", To: "shop/db-1", Port: "5432/TCP"},
			[]string{"allow", "10.0.1.1 10.0.2.1 port 5432/TCP allow allowed-by-rule"},
		},
		"names in a namespace, default protocol": {
			Question{From: "web-1", To: "db-1", Port: "80", Namespace: "shop"},
			[]string{"deny", "10.0.1.1 10.0.2.1 port 80/TCP deny no-rule-matches"},
		},
		"both families": {
			Question{From: "shop/web-1", To: "shop/db-2", Port: "5433/tcp"},
			[]string{
				"allow", "10.0.1.1 10.0.1.2 port 5433/TCP allow allowed-by-rule",
				"fd00:1::1 fd00:1::2 port 5433/TCP allow allowed-by-rule",
			},
		},
		"named port": {
			Question{From: "shop/web-1", To: "shop/db-1", Port: "sql"},
			[]string{"allow", "10.0.1.1 10.0.2.1 port 5432/TCP allow allowed-by-rule"},
		},
		"ICMP": {
			Question{From: "shop/web-1", To: "shop/db-2", Port: "icmp"},
			[]string{
				"deny", "10.0.1.1 10.0.1.2 ICMP deny no-rule-matches", "fd00:1::1 fd00:1::2 ICMPv6 deny no-rule-matches",
			},
		},
		"service": {
			Question{From: "shop/web-1", To: "svc/shop/db", Port: "3306"},
			[]string{
				"allow", "10.0.1.1 10.0.2.1 port 5432/TCP allow allowed-by-rule",
				"10.0.1.1 10.0.1.2 port 5433/TCP allow allowed-by-rule",
				"fd00:1::1 fd00:1::2 port 5433/TCP allow allowed-by-rule",
			},
		},
		"service by the name of its port": {
			Question{From: "10.0.1.1", To: "svc/db", Port: "sql", Namespace: "shop"},
			[]string{
				"allow", "10.0.1.1 10.0.2.1 port 5432/TCP allow allowed-by-rule",
				"10.0.1.1 10.0.1.2 port 5433/TCP allow allowed-by-rule",
			},
		},
		"from outside": {
			Question{From: "198.51.100.7", To: "shop/db-1", Port: "1"},
			[]string{"allow", "198.51.100.7 10.0.2.1 port 1/TCP allow allowed-by-rule"},
		},
		"between strangers": {
			Question{From: "198.51.100.7", To: "192.0.2.77", Port: "1/UDP"},
			[]string{"allow", "198.51.100.7 192.0.2.77 port 1/UDP allow no-local-subject"},
		},
		"address of no pod": {
			Question{From: "shop/web-1", To: "10.0.2.99", Port: "1"},
			[]string{"deny", "10.0.1.1 10.0.2.99 port 1/TCP deny unknown-endpoint"},
		},
		"itself": {
			Question{From: "ops/tool", To: "ops/tool", Port: "1/SCTP"},
			[]string{"allow", "10.0.1.9 10.0.1.9 port 1/SCTP allow hairpin"},
		},
		"own node": {
			Question{From: "node/n1", To: "shop/db-2", Port: "1"},
			[]string{"allow", "192.0.2.1 10.0.1.2 port 1/TCP allow own-node"},
		},
		"to the own node": {
			Question{From: "shop/db-2", To: "node/n1", Port: "1"},
			[]string{"allow", "10.0.1.2 192.0.2.1 port 1/TCP allow not-isolated"},
		},
		"other node": {
			Question{From: "node/n2", To: "shop/db-2", Port: "1"},
			[]string{"deny", "192.0.2.2 10.0.1.2 port 1/TCP deny no-rule-matches"},
		},
	} {
		a, err := Ask(c, test.q)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(strings.Join(test.want, "\n"), outcome(&a)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	c := shop(t, "")
	for _, test := range []struct {
		q    Question
		is   error
		says string
	}{
		{Question{From: "shop/web-1", To: "shop/db-1"}, ErrQuestion, "80/TCP"},
		{Question{From: "shop/web-1", To: "shop/db-1", Port: "0"}, ErrQuestion, "between 1 and 65535"},
		{Question{From: "shop/web-1", To: "shop/db-1", Port: "70000/UDP"}, ErrQuestion, "between 1 and 65535"},
		{Question{From: "shop/web-1", To: "shop/db-1", Port: "/TCP"}, ErrQuestion, "between 1 and 65535"},
		{Question{From: "shop/web-1", To: "shop/db-1", Port: "80/GRE"}, ErrQuestion, "none of TCP, UDP and SCTP"},
		{Question{From: "shop/web-1", To: "shop/db-1", Port: "http"}, ErrNotFound, "sql (5432/TCP)"},
		{Question{From: "shop/web-1", To: "198.51.100.1", Port: "http"}, ErrNotFound, "named ports: none"},
		{Question{To: "shop/db-1", Port: "1"}, ErrQuestion, "--from"},
		{Question{From: "shop/web-1", To: "a/b/c", Port: "1"}, ErrQuestion, "namespace/name"},
		{Question{From: "shop/wbe-1", To: "shop/db-1", Port: "1"}, ErrNotFound, "namespace shop has db-1, db-2, web-1"},
		{Question{From: "web-1", To: "shop/db-1", Port: "1"}, ErrNotFound, "no pod in namespace default"},
		{Question{From: "node/n9", To: "shop/db-1", Port: "1"}, ErrNotFound, "the nodes are n1, n2"},
		{Question{From: "svc/shop/db", To: "shop/db-1", Port: "1"}, ErrQuestion, "opens no connections"},
		{Question{From: "shop/web-1", To: "svc/shop/dbb", Port: "1"}, ErrNotFound, "service shop/dbb"},
		{Question{From: "shop/web-1", To: "svc/shop/db", Port: "1"}, ErrNotFound, "it has 3306/TCP"},
		{Question{From: "shop/web-1", To: "svc/shop/headless", Port: "80"}, ErrNotFound, "selects no pods"},
		{Question{From: "shop/web-1", To: "svc/shop/nobody", Port: "80"}, ErrNotFound, "behind service shop/nobody"},
		{Question{From: "2001:db8::1", To: "shop/db-1", Port: "80"}, ErrNoFlow, "family"},
	} {
		_, err := Ask(c, test.q)
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%+v: %v; want %q in a %q", test.q, err, test.says, test.is)
		}
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (run with -update if that is meant): %s", name, d)
	}
}

func TestWords(t *testing.T) {
	var b strings.Builder
	for _, test := range []struct{ node, from, to, port string }{
		{"", "shop/web-1", "shop/db-1", "sql"},
		{"", "shop/web-1", "shop/db-1", "80"},
		{"", "ops/tool", "shop/db-1", "80/UDP"},
		{"", "198.51.100.1", "shop/db-1", "ICMP"},
		{"", "203.0.113.1", "shop/db-1", "22"},
		{"", "node/n1", "shop/db-2", "80"},
		{"", "ops/tool", "203.0.113.1", "443"},
		{"", "shop/db-1", "shop/db-1", "443"},
		{"", "shop/db-1", "10.0.1.77", "443"},
		{"n1", "shop/web-1", "shop/db-1", "80"},
		{"n2", "shop/web-1", "shop/db-2", "80"},
	} {
		a, err := Ask(shop(t, test.node), Question{From: test.from, To: test.to, Port: test.port})
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("# node " + test.node + ": " + test.from + " to " + test.to + " at " + test.port + "\n")
		if err := a.WriteText(&b, term.Style{}); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n")
	}
	golden(t, "words.txt", b.String())
}

func TestColoursAreAllThatColourAdds(t *testing.T) {
	a, err := Ask(shop(t, ""), Question{From: "shop/web-1", To: "shop/db-1", Port: "80"})
	if err != nil {
		t.Fatal(err)
	}
	var plain, coloured strings.Builder
	err = errors.Join(a.WriteText(&plain, term.Style{}), a.WriteText(&coloured, term.Style{Colour: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(coloured.String(), "\x1b[31mDENY ") {
		t.Errorf("%q", coloured.String())
	}
	stripped := coloured.String()
	for _, code := range []string{"0", "1", "2", "31", "32", "33"} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+code+"m", "")
	}
	if d := cmp.Diff(plain.String(), stripped); d != "" {
		t.Error(d)
	}
}

func TestAgentAnswersAsTheLibraryDoes(t *testing.T) {
	c := shop(t, "")
	ready := false
	srv := httptest.NewServer(Handler(func() *engine.Snapshot {
		if !ready {
			return nil
		}
		return c.Snapshot
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(q Question, style *term.Style) (Remote, error) {
		return AskAgent(t.Context(), srv.Client(), *base, q, style)
	}
	q := Question{From: "web-1", To: "db-1", Port: "80", Namespace: "shop"}
	if _, err := ask(q, nil); err == nil || !strings.Contains(err.Error(), "starting") {
		t.Error(err)
	}
	ready = true
	for _, port := range []string{"80", "sql"} {
		q.Port = port
		want, err := Ask(c, q)
		if err != nil {
			t.Fatal(err)
		}
		var text, js bytes.Buffer
		if err := errors.Join(want.WriteText(&text, term.Style{Colour: true}), want.WriteJSON(&js)); err != nil {
			t.Fatal(err)
		}
		asText, err := ask(q, &term.Style{Colour: true})
		if err != nil || asText.Verdict != want.Verdict || string(asText.Body) != text.String() {
			t.Errorf("%v %v %s", err, asText.Verdict, asText.Body)
		}
		asJSON, err := ask(q, nil)
		if err != nil || asJSON.Verdict != want.Verdict || !bytes.Equal(asJSON.Body, js.Bytes()) {
			t.Errorf("%v %v %s", err, asJSON.Verdict, asJSON.Body)
		}
		var decoded struct {
			Verdict string
			Flows   []struct{ Action, Reason string }
		}
		if err := json.Unmarshal(asJSON.Body, &decoded); err != nil || decoded.Verdict != want.Verdict.String() ||
			len(decoded.Flows) != 1 || decoded.Flows[0].Reason != want.Flows[0].Reason.String() {
			t.Errorf("%v %+v", err, decoded)
		}
	}
	for q, says := range map[Question]string{
		{From: "shop/x", To: "shop/db-1", Port: "1"}:        "namespace shop has",
		{From: "shop/web-1", To: "shop/db-1", Port: "x/y"}:  "none of TCP",
		{From: "shop/web-1", To: "svc/shop/db", Port: "80"}: "knows pods and addresses, not services",
	} {
		if _, err := ask(q, nil); err == nil || !strings.Contains(err.Error(), says) ||
			strings.Count(err.Error(), ErrQuestion.Error()) > 1 {
			t.Errorf("%+v: %v, want %q", q, err, says)
		}
	}
}

func TestSomebodyElseAnswers(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/proxy/explain" {
			http.Error(w, `{"kind":"Status","message":"pods is forbidden"}`, http.StatusForbidden)
			return
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"": "does not explain (404 Not Found: 404 page not found)", "/api/proxy": "(403 Forbidden: pods is forbidden)",
	} {
		_, err := AskAgent(t.Context(), srv.Client(), *base.JoinPath(path), Question{}, nil)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Error(err)
		}
	}
	srv.Close()
	if _, err := AskAgent(t.Context(), srv.Client(), *base, Question{}, nil); err == nil ||
		!strings.Contains(err.Error(), "no answer from the agent") {
		t.Error(err)
	}
}

// TestVerdictIsJudges asks about every pair and many ports, and compares with what enforces.
func TestVerdictIsJudges(t *testing.T) {
	words := []string{
		"shop/web-1", "shop/db-1", "shop/db-2", "ops/tool", "node/n1", "node/n2", "198.51.100.7", "203.0.113.1",
	}
	for _, node := range []string{"", "n1", "n2"} {
		c := shop(t, node)
		ev := engine.NewEvaluator(100)
		for _, from := range words {
			for _, to := range words {
				for _, number := range []string{"1", "80", "5432", "5433", "5432/UDP", "9/SCTP", "ICMP"} {
					q := Question{From: from, To: to, Port: number}
					a, err := Ask(c, q)
					if errors.Is(err, ErrNoFlow) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					p, err := parsePort(number)
					if err != nil {
						t.Fatal(err)
					}
					for i := range a.Flows {
						x := &a.Flows[i]
						f := p.flow(x.Source.Addr, x.Destination.Addr)
						v := ev.Judge(c.Snapshot, &f, x.Hook, true)
						if v.Action != x.Action || v.Reason != x.Reason || v.Direction != x.Direction {
							t.Errorf("%s %+v: %s %s, but Judge says %s %s", node, q, x.Action, x.Reason, v.Action, v.Reason)
						}
					}
					denied := slices.ContainsFunc(a.Flows, func(x engine.Explanation) bool { return x.Action != engine.Allow })
					if denied != (a.Verdict == engine.Deny) {
						t.Errorf("%+v: %s", q, outcome(&a))
					}
				}
			}
		}
	}
}
