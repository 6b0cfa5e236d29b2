package deploy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/serve"
)

// established are flows that live while something is done to the node: a TCP stream under load, exchanges of
// datagrams of which each must be answered, and flows that policy does not allow.
type established struct {
	running sync.WaitGroup
	done    chan struct{}
	stream  net.Conn

	echoed    atomic.Int64 // bytes of the stream that came back, in order
	answered  atomic.Int64 // datagrams
	forbidden atomic.Int64 // exchanges over flows that should be dead

	mu     sync.Mutex
	errors []error
}

// echo serves the allowed and a forbidden port in the server's pod.
func (n *node) echo(t *testing.T) {
	t.Helper()
	s := serve.New("server")
	t.Cleanup(s.Close)
	for _, network := range []string{"tcp", "udp"} {
		for _, port := range []uint16{held, forbidden} {
			if err := s.Listen(n.server.NS(), network, serverAddr(port)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func serverAddr(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(serverPod), port)
}

func (n *node) open(t *testing.T, proto probe.Proto, port uint16) *probe.Flow {
	t.Helper()
	f, r, err := probe.Open(t.Context(), probe.Probe{
		From: n.client.NS(), To: serverAddr(port), Proto: proto, Wait: patience,
	})
	if err != nil || r.Outcome != probe.Reached {
		t.Fatalf("open a flow to port %d: %v, %v", port, r, err)
	}
	return f
}

// hold opens the flows and keeps them busy. old is a connection that policy no longer allows.
func (n *node) hold(t *testing.T, old *probe.Flow) *established {
	t.Helper()
	e := &established{done: make(chan struct{})}
	var err error
	if e.stream, err = dial(n.client.NS(), serverAddr(held).String()); err != nil {
		t.Fatal(err)
	}
	datagrams := n.open(t, probe.UDP, held)
	datagrams.Wait = 10 * time.Second // a lost one is never answered
	e.running.Go(e.write)
	e.running.Go(e.read)
	e.repeat(func() bool {
		r := datagrams.Exchange()
		if r.Outcome != probe.Reached {
			e.fail(fmt.Errorf("datagram %d: %v", e.answered.Load(), r))
			return false
		}
		e.answered.Add(1)
		return true
	}, datagrams)
	for _, f := range []*probe.Flow{old, n.open(t, probe.UDP, forbidden)} {
		f.Wait = 50 * time.Millisecond
		e.repeat(func() bool {
			if f.Exchange().Outcome == probe.Reached {
				e.forbidden.Add(1)
			}
			return true
		}, f)
	}
	return e
}

// repeat calls a function every few milliseconds until the end, or until it says no.
func (e *established) repeat(once func() bool, flow io.Closer) {
	e.running.Go(func() {
		defer flow.Close()
		for once() {
			select {
			case <-e.done:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
}

func (e *established) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.errors = append(e.errors, err)
}

// chunkSize is what the stream sends at a time, in bytes, and chunkPause the time between two: a load that leaves the
// processors to those who are tested.
const (
	chunkSize  = 64 << 10
	chunkPause = 20 * time.Millisecond
)

// write sends numbered words until the end, and then ends the connection's sending half.
func (e *established) write() {
	chunk := make([]byte, chunkSize)
	for word := uint64(0); ; {
		for at := 0; at < chunkSize; at += 8 {
			binary.BigEndian.PutUint64(chunk[at:], word)
			word++
		}
		if _, err := e.stream.Write(chunk); err != nil {
			e.fail(fmt.Errorf("stream: %w", err))
			return
		}
		select {
		case <-e.done:
			if err := e.stream.(*net.TCPConn).CloseWrite(); err != nil {
				e.fail(fmt.Errorf("stream: %w", err))
			}
			return
		case <-time.After(chunkPause):
		}
	}
}

// read checks that all words come back, in order, to the end.
func (e *established) read() {
	defer e.stream.Close()
	r := bufio.NewReaderSize(e.stream, chunkSize)
	if _, err := r.ReadString('\n'); err != nil { // the server's greeting
		e.fail(fmt.Errorf("stream: %w", err))
		return
	}
	var buf [8]byte
	for word := uint64(0); ; word++ {
		_, err := io.ReadFull(r, buf[:])
		if errors.Is(err, io.EOF) {
			return
		}
		if got := binary.BigEndian.Uint64(buf[:]); err != nil || got != word {
			e.fail(fmt.Errorf("stream: word %d is %d: %w", word, got, err))
			return
		}
		e.echoed.Add(8)
	}
}

// waitMore waits until all that is allowed has gone on for a while.
func (e *established) waitMore(t *testing.T) {
	t.Helper()
	bytes, datagrams := e.echoed.Load(), e.answered.Load()
	eventually(t, "established flows go on", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.errors) > 0 || e.echoed.Load() > bytes+16*chunkSize && e.answered.Load() > datagrams+50
	})
}

// end stops and tells what went wrong.
func (e *established) end(t *testing.T) {
	t.Helper()
	close(e.done)
	e.running.Wait()
	t.Logf("%d KiB came back over the stream, %d datagrams were answered", e.echoed.Load()>>10, e.answered.Load())
	for _, err := range e.errors {
		t.Error(err)
	}
	if n := e.forbidden.Load(); n > 0 {
		t.Errorf("%d exchanges over flows that policy does not allow", n)
	}
}
