package page

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a page the way agents do.
func serve(t *testing.T, hub *flowstream.Hub, wrap func(http.Handler) http.Handler) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for path, h := range Handlers(Config{
		Title: "node-a", Flows: hub,
		Traffic: func(context.Context) traffic.Graph {
			return traffic.Graph{Edges: []traffic.Edge{{Port: "80/TCP", Verdict: traffic.Allow, Count: 2}}}
		},
		Possible: func() traffic.Possible {
			return traffic.Possible{Edges: []traffic.PossibleEdge{{Ports: []string{"81/TCP"}}}}
		},
		Agents:  func(context.Context) []Agent { return []Agent{{Node: "node-a", Generation: 7}} },
		Explain: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "because") }),
	}) {
		mux.Handle("GET "+path, wrap(h))
	}
	s := httptest.NewUnstartedServer(mux)
	s.Config.ReadTimeout, s.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func open(h http.Handler) http.Handler { return h }

// answer is an answer whose body has been read.
type answer struct {
	StatusCode int
	Status     string
	Header     http.Header
}

func get(t *testing.T, c *http.Client, url, host string) (got answer, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Status, resp.Header}, string(body)
}

func TestFiles(t *testing.T) {
	s := serve(t, flowstream.NewHub(0, 0), open)
	for path, want := range map[string]struct {
		status     int
		kind, text string
	}{
		"/":              {200, "text/html", "<title>firstpacket"},
		"/page/page.css": {200, "text/css", "prefers-color-scheme"},
		"/page/page.js":  {200, "text/javascript", "EventSource"},
		"/page/icon.svg": {200, "image/svg+xml", "<svg"},
		"/page/explain":  {200, "text/plain", "because"},
		"/page/other":    {404, "text/plain", "not found"},
		"/page/..%2fx":   {404, "text/plain", "not found"},
	} {
		resp, body := get(t, s.Client(), s.URL+path, "")
		if resp.StatusCode != want.status || !strings.HasPrefix(resp.Header.Get("Content-Type"), want.kind) ||
			!strings.Contains(body, want.text) {
			t.Errorf("%s: %s, %s, %.60q", path, resp.Status, resp.Header.Get("Content-Type"), body)
		}
		if resp.Header.Get("Content-Security-Policy") != contentSecurityPolicy {
			t.Errorf("%s has no content security policy", path)
		}
	}
	if resp, err := s.Client().Post(s.URL+"/", "text/plain", http.NoBody); err != nil ||
		resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// TestNothingInline: the policy forbids it, and nothing may come from elsewhere.
func TestNothingInline(t *testing.T) {
	s := serve(t, flowstream.NewHub(0, 0), open)
	_, html := get(t, s.Client(), s.URL+"/", "")
	for _, forbidden := range []string{
		`\sstyle=`, `\son\w+=`, `<style`, `<script(>|\s[^>]*>[^<])`, `(src|href)="(/|\w+:)`,
	} {
		if found := regexp.MustCompile(forbidden).FindString(html); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
	for _, file := range []string{"page.js", "page.css"} {
		_, text := get(t, s.Client(), s.URL+"/page/"+file, "")
		text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "") // a name, not a place
		if found := regexp.MustCompile(`https?:|//\w+\.|innerHTML|eval\(|@import`).FindString(text); found != "" {
			t.Errorf("%s has %q", file, found)
		}
	}
}

// TestEvents outlives the server's limits for answers that end.
func TestEvents(t *testing.T) {
	hub := flowstream.NewHub(0, 0)
	s := serve(t, hub, open)
	hub.Publish([]byte(`{"first":1}` + "\n"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/page/events", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	expect := func(want string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == want {
				return
			}
		}
		t.Fatalf("no %q: %v", want, lines.Err())
	}
	expect(`data: {"explains":true,"title":"node-a"}`)
	expect("event: agents")
	expect(`data: [{"node":"node-a","generation":7}]`)
	expect("event: traffic")
	expect("event: possible")
	expect(`data: {"edges":[{"from":{"name":""},"to":{"name":""},"ports":["81/TCP"]}]}`)
	expect("event: flow")
	expect(`data: {"first":1}`)
	time.Sleep(300 * time.Millisecond) // longer than the limits
	hub.Publish([]byte(`{"second":2}` + "\n"))
	expect(`data: {"second":2}`)
}

func TestTooManyViewers(t *testing.T) {
	p := &page{}
	for range maxViewers {
		if !p.enter() {
			t.Fatal("turned away too early")
		}
	}
	if p.enter() {
		t.Error("one too many")
	}
	p.leave()
	if !p.enter() {
		t.Error("room is not given back")
	}
}

// TestPrivate: neither others on the network nor web sites that the user looks at.
func TestPrivate(t *testing.T) {
	s := serve(t, flowstream.NewHub(0, 0), Private)
	for host, want := range map[string]int{
		"127.0.0.1:9099": 200, "localhost:9099": 200, "[::1]:9099": 200, "localhost": 200,
		"evil.example:9099": 403, "evil.example": 403, "localhost.evil.example": 403,
	} {
		if resp, _ := get(t, s.Client(), s.URL+"/", host); resp.StatusCode != want {
			t.Errorf("host %s: %s", host, resp.Status)
		}
	}
	for addr, want := range map[net.Addr]bool{
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}:                 false,
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}:                 true,
		&net.TCPAddr{IP: net.IPv6loopback, Port: 1}:                       true,
		&net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}: true,
	} {
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, addr), http.MethodGet,
			"http://127.0.0.1/", http.NoBody)
		if local(r) != want {
			t.Errorf("over %s: %v", addr, !want)
		}
	}
}
