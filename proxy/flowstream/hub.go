package flowstream

import "sync"

// Hub remembers the newest lines of the log and hands each further one to its subscribers.
type Hub struct {
	recentMax, backlog int

	mu      sync.Mutex
	recent  [][]byte // a ring
	next    int      // where the next line goes, once the ring is full
	readers map[*Subscription]struct{}
	dropped uint64
}

// NewHub makes a hub that remembers so many lines, and lets a subscriber be so many behind. 0 stands for the default of
// either, 1000.
func NewHub(recent, backlog int) *Hub {
	if recent <= 0 {
		recent = defaultRecent
	}
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	return &Hub{recentMax: recent, backlog: backlog, readers: map[*Subscription]struct{}{}}
}

// Publish hands a line, newline included, to all subscribers. It copies the line and never waits.
func (h *Hub) Publish(line []byte) {
	line = append([]byte(nil), line...) // remembered, and shared by all readers
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.recent) < h.recentMax {
		h.recent = append(h.recent, line)
	} else {
		h.recent[h.next] = line
		h.next = (h.next + 1) % len(h.recent)
	}
	for s := range h.readers {
		select {
		case s.lines <- line:
		default:
			h.dropped++
			h.forget(s)
		}
	}
}

// Subscription is what one reader receives.
type Subscription struct {
	// Recent are the remembered lines that were asked for, oldest first. Lines are shared and not to be changed.
	Recent [][]byte

	hub   *Hub
	lines chan []byte
	ended func()
}

// Subscribe gives a reader what it asks for, without a gap between remembered and further lines. ended, which may be
// nil, is called once when the subscription ends, by Close or because the reader did not keep up; it must not wait. A
// subscription that follows has to be closed.
func (h *Hub) Subscribe(req Request, ended func()) *Subscription {
	s := &Subscription{hub: h, lines: make(chan []byte, h.backlog), ended: ended}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Recent = append(append([][]byte(nil), h.recent[h.next:]...), h.recent[:h.next]...)
	if req.Recent >= 0 && req.Recent < len(s.Recent) {
		s.Recent = s.Recent[len(s.Recent)-req.Recent:]
	}
	if req.Follow {
		h.readers[s] = struct{}{}
	} else {
		close(s.lines)
	}
	return s
}

// Lines are those written after Recent. The channel is closed when the subscription ends.
func (s *Subscription) Lines() <-chan []byte { return s.lines }

// Close ends the subscription; it may be called more than once.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.forget(s)
}

// forget ends a subscription. Called with mu held.
func (h *Hub) forget(s *Subscription) {
	if _, ok := h.readers[s]; !ok {
		return
	}
	delete(h.readers, s)
	close(s.lines)
	if s.ended != nil {
		s.ended()
	}
}

// droppedCount is the number of readers that did not keep up.
func (h *Hub) droppedCount() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dropped
}
