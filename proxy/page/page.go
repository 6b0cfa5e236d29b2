// Package page serves a small web page that shows what an agent, or all agents of a cluster, do: denied flows as they
// come, who talks to whom, what each policy had to do with it, and a form that asks why. It only reads, loads nothing
// from elsewhere, and runs no script or style that is not one of its own files.
package page

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

// Config says what the page shows. All but Explain and Possible are needed.
type Config struct {
	// Title names the node or the cluster.
	Title string
	// Flows are the lines of the denied-flow log.
	Flows *flowstream.Hub
	// Traffic tells who talks to whom. It is asked once in a refresh interval at most, however many look on.
	Traffic func(ctx context.Context) traffic.Graph
	// Possible tells what policy allows, as often. It may be nil where nobody knows both sides of every connection.
	Possible func() traffic.Possible
	// Agents tells how the agents are, as often.
	Agents func(ctx context.Context) []Agent
	// Explain answers explain's questions, see policycache/explain; without it the page has no form.
	Explain http.Handler
}

// Agent is how one agent is.
type Agent struct {
	Node    string `json:"node"`
	Version string `json:"version,omitempty"`
	// NotReady is empty if the agent enforces, else why not, or why it is not known.
	NotReady   string `json:"notReady,omitempty"`
	Generation uint32 `json:"generation,omitempty"`
	Policies   int    `json:"policies,omitempty"`
	// Problems are those of policies, by policy.
	Problems map[string][]string `json:"problems,omitempty"`
}

//go:embed assets
var assets embed.FS

// Paths of the page, each of which is to be served by what Handlers gives for it.
const (
	indexPath  = "/{$}"
	assetPath  = "/page/{file}"
	eventsPath = "/page/events"
	askPath    = "/page/explain"
)

// contentSecurityPolicy leaves the page what it needs and nothing else.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
	"img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

// Handlers returns the page's handlers by path, for GET requests to be routed to. All links in the page are relative,
// so that it works behind a proxy that serves it below another path.
func Handlers(cfg Config) map[string]http.Handler {
	p := &page{Config: cfg}
	h := map[string]http.Handler{
		indexPath:  http.HandlerFunc(p.index),
		assetPath:  http.HandlerFunc(p.asset),
		eventsPath: http.HandlerFunc(p.events),
	}
	if cfg.Explain != nil {
		h[askPath] = cfg.Explain
	}
	for path, inner := range h {
		h[path] = secure(inner)
	}
	return h
}

// secure sets the headers that keep others from using the page.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", contentSecurityPolicy)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		w.Header().Set("Cache-Control", "no-cache")
		h.ServeHTTP(w, r)
	})
}

// Private answers only those who come over a loopback address or a unix socket. A web site that a user of this machine
// looks at must not read along either, by a name of its own that it has resolve to the loopback address: hosts are
// addresses or localhost.
func Private(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !local(r) {
			http.Error(w, "served on loopback addresses and unix sockets only, and not by a host's name; "+
				"the agent's --expose-page changes that", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func local(r *http.Request) bool {
	switch a := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		if !a.IP.IsLoopback() {
			return false
		}
	default:
		return false
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost"
}

type page struct {
	Config

	mu       sync.Mutex
	viewers  int
	observed observation
	asked    time.Time
}

func (p *page) index(w http.ResponseWriter, r *http.Request) { p.file(w, r, "index.html") }

func (p *page) asset(w http.ResponseWriter, r *http.Request) { p.file(w, r, r.PathValue("file")) }

func (p *page) file(w http.ResponseWriter, r *http.Request, name string) {
	f, err := assets.Open(path.Join("assets", name))
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f.Close()
	http.ServeFileFS(w, r, assets, path.Join("assets", name))
}

// observation is what is asked for again and again, as JSON.
type observation struct{ traffic, agents, possible []byte }

// observe asks, unless that was done a moment ago for somebody else.
func (p *page) observe(ctx context.Context) observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < refresh*9/10 {
		return p.observed
	}
	var o observation
	var err error
	if o.traffic, err = json.Marshal(p.Traffic(ctx)); err == nil {
		o.agents, err = json.Marshal(p.Agents(ctx))
	}
	if err == nil && p.Possible != nil {
		o.possible, err = json.Marshal(p.Possible())
	}
	if err == nil { // it is always: these are plain data
		p.observed, p.asked = o, time.Now()
	}
	return p.observed
}
