package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/firstpacket/firstpacket/proxy/flowstream"
)

const (
	// refresh lies between two looks at traffic and agents.
	refresh = 2 * time.Second
	// sendTimeout is how long an event may wait for the browser.
	sendTimeout = 30 * time.Second
	// recent is how many denied flows a page begins with.
	recent = 200
	// maxViewers bounds the pages that are open at a time.
	maxViewers = 32
)

// events streams server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): hello with the
// title, flow with a line of the log; traffic, agents and what policy allows when they are others than before.
func (p *page) events(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	defer p.leave()
	sub := p.Flows.Subscribe(flowstream.Request{Recent: recent, Follow: true}, nil)
	defer sub.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	s := stream{w: w, out: http.NewResponseController(w)}
	// The server's own limits are for requests and answers that end soon.
	s.err = s.out.SetReadDeadline(time.Time{})
	hello, err := json.Marshal(map[string]any{"title": p.Title, "explains": p.Explain != nil})
	if err != nil {
		return
	}
	s.event("hello", hello)
	var seen observation
	look := func() {
		now := p.observe(r.Context())
		if !bytes.Equal(now.agents, seen.agents) {
			s.event("agents", now.agents)
		}
		if !bytes.Equal(now.traffic, seen.traffic) {
			s.event("traffic", now.traffic)
		}
		if !bytes.Equal(now.possible, seen.possible) {
			s.event("possible", now.possible)
		}
		seen = now
		s.comment() // a page that is gone is noticed by writing to it
	}
	look()
	for _, line := range sub.Recent {
		s.event("flow", line)
	}
	s.flush()
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for s.err == nil {
		select {
		case line, ok := <-sub.Lines():
			if !ok {
				return // too slow: the browser begins anew by itself
			}
			s.event("flow", line)
		case <-tick.C:
			look()
		case <-r.Context().Done():
			return
		}
		s.flush()
	}
}

func (p *page) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers >= maxViewers {
		return false
	}
	p.viewers++
	return true
}

func (p *page) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.viewers--
}

// stream writes events and remembers the first error.
type stream struct {
	w   io.Writer
	out *http.ResponseController
	err error
}

func (s *stream) event(name string, data []byte) {
	s.print("event: %s\ndata: %s\n\n", name, bytes.TrimSpace(data))
}

func (s *stream) comment() { s.print(":\n\n") }

func (s *stream) print(format string, args ...any) {
	if s.err == nil {
		s.err = s.out.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	if s.err == nil {
		_, s.err = fmt.Fprintf(s.w, format, args...)
	}
}

func (s *stream) flush() {
	if s.err == nil {
		s.err = s.out.Flush()
	}
}
