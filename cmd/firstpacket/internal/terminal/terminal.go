// Package terminal tells what a command may show: colours and progress are for people who watch.
package terminal

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// Is tells whether the writer is a terminal.
func Is(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Style has colours if the writer is a terminal that shows them and the user has not asked for none
// (https://no-color.org).
func Style(w io.Writer) term.Style {
	return term.Style{Colour: Is(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// patience is how long a command may take before it shows that it is at work.
const patience = 2 * time.Second

// Progress shows how far a command is, on one line that it takes away in the end.
type Progress struct {
	w    io.Writer // nil shows nothing
	what string

	mu    sync.Mutex
	next  time.Time
	shown bool
}

// NewProgress shows progress on a terminal and nothing elsewhere. what says what is being done.
func NewProgress(w io.Writer, what string) *Progress {
	p := &Progress{what: what, next: time.Now().Add(patience)}
	if Is(w) {
		p.w = w
	}
	return p
}

// Tell notes that done of total parts are ready.
func (p *Progress) Tell(done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.w != nil && total > 0 && now.After(p.next) {
		p.next = now.Add(patience / 10)
		p.shown = true
		fmt.Fprintf(p.w, "\r%s: %d%%\x1b[K", p.what, 100*done/total)
	}
}

// Wait shows that something of unknown length is under way, until the returned function is called.
func (p *Progress) Wait() (stop func()) {
	if p.w == nil {
		return func() {}
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-end:
		case <-time.After(patience):
			p.mu.Lock()
			p.shown = true
			fmt.Fprintf(p.w, "\r%s ...\x1b[K", p.what)
			p.mu.Unlock()
		}
	}()
	return func() {
		close(end)
		<-done
		p.Done()
	}
}

// Done takes the line away.
func (p *Progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
