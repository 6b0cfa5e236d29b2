package terminal

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// console gives a terminal, and the side that a person would look at.
func console(t *testing.T) (tty *os.File) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestStyle(t *testing.T) {
	tty := console(t)
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	if !Style(tty).Colour {
		t.Error("no colours on a terminal")
	}
	if Style(new(bytes.Buffer)).Colour {
		t.Error("colours elsewhere")
	}
	t.Setenv("TERM", "dumb")
	if Style(tty).Colour {
		t.Error("colours on a dumb terminal")
	}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	if Style(tty).Colour {
		t.Error("colours that are not wanted")
	}
}

func TestProgressIsForTerminalsThatWaitLong(t *testing.T) {
	var b bytes.Buffer
	p := NewProgress(&b, "working")
	p.next = time.Now().Add(-time.Second)
	p.Tell(1, 2)
	p.Wait()()
	p.Done()
	if b.Len() > 0 {
		t.Errorf("%q where nobody watches", b.String())
	}
	p.w = &b // as if somebody did
	p.Tell(1, 0)
	p.Tell(1, 4)
	p.Tell(2, 4) // too soon after the other
	p.Done()
	if got := b.String(); got != "\rworking: 25%\x1b[K\r\x1b[K" {
		t.Errorf("%q", got)
	}
	b.Reset()
	q := NewProgress(console(t), "working")
	q.w = &b
	q.Tell(1, 2) // before anybody could grow impatient
	q.Wait()()
	q.Done()
	if strings.Contains(b.String(), "working") {
		t.Errorf("%q", b.String())
	}
}
