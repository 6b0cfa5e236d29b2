package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/serve"
)

// Flow is a connection, or the like of it over UDP, that lives until it is closed: to see what a change does to flows
// that are established. It belongs to one goroutine.
type Flow struct {
	// Wait is how long Exchange waits; Open sets it to that of the probe.
	Wait  time.Duration
	proto Proto
	conn  net.Conn
	// By and Seen are what the server said at first; empty on UDP until the first Exchange.
	By   string
	Seen netip.AddrPort
	// pending is what was received and not yet taken.
	pending []byte
	turns   int
}

// Open starts a flow. On TCP the result tells how connecting went, and the Flow is nil unless it is Reached; on UDP
// nothing is sent yet. The error is that of a probe that cannot be sent at all.
func Open(ctx context.Context, p Probe) (*Flow, Result, error) {
	f := &Flow{Wait: p.Wait, proto: p.Proto}
	if f.Wait == 0 {
		f.Wait = DefaultWait
	}
	dialer := net.Dialer{Timeout: f.Wait}
	network := strings.ToLower(p.Proto.String())
	if p.Source.Addr().IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(p.Source)
		if p.Proto == UDP {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(p.Source)
		}
	}
	sent := time.Now()
	err := p.From.Do(func() (err error) {
		f.conn, err = dialer.DialContext(ctx, network, p.To.String())
		return err
	})
	if err != nil {
		r := outcomeOf(err)
		if r.Outcome == Failed {
			return nil, r, fmt.Errorf("open flow to %s: %w", p.To, err)
		}
		return nil, r, nil
	}
	r := Result{Outcome: Reached, Connected: p.Proto == TCP, Latency: time.Since(sent)}
	if p.Proto == UDP {
		return f, r, nil
	}
	if err := f.receiveBanner(); err != nil {
		_ = f.conn.Close()
		failed := outcomeOf(err)
		failed.Connected = true
		return nil, failed, nil
	}
	r.By, r.Seen = f.By, f.Seen
	return f, r, nil
}

// outcomeOf reads the outcome from an error of package net.
func outcomeOf(err error) Result {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Result{Outcome: Silent}
	case isRefusal(err):
		var errno unix.Errno
		errors.As(err, &errno)
		return Result{Outcome: Refused, Err: errno}
	default:
		return Result{Outcome: Failed, Err: err}
	}
}

// receiveBanner reads until the banner is complete.
func (f *Flow) receiveBanner() error {
	if err := f.conn.SetReadDeadline(time.Now().Add(f.Wait)); err != nil {
		return err
	}
	for {
		if b, rest, ok := serve.ParseBanner(f.pending); ok {
			f.By, f.Seen, f.pending = b.Name, b.Client, rest
			return nil
		}
		if err := f.receive(); err != nil {
			return err
		}
	}
}

func (f *Flow) receive() error {
	buf := make([]byte, serve.MaxDatagram)
	n, err := f.conn.Read(buf)
	f.pending = append(f.pending, buf[:n]...)
	return err
}

// Exchange sends a few bytes over the flow and waits up to Wait for their echo. An end of the connection
// by the other side counts as Refused.
func (f *Flow) Exchange() Result {
	f.turns++
	token := fmt.Sprintf("turn %d\n", f.turns)
	sent := time.Now()
	if err := f.conn.SetDeadline(sent.Add(f.Wait)); err != nil {
		return outcomeOf(err)
	}
	if f.proto == UDP {
		f.pending = nil // late answers of turns that were given up
	}
	if _, err := f.conn.Write([]byte(token)); err != nil {
		return outcomeOf(err)
	}
	for !strings.Contains(string(f.pending), token) {
		if err := f.receive(); err != nil {
			return outcomeOf(err)
		}
	}
	if b, _, ok := serve.ParseBanner(f.pending); ok {
		f.By, f.Seen = b.Name, b.Client
	}
	f.pending = nil
	return Result{Outcome: Reached, By: f.By, Seen: f.Seen, Connected: f.proto == TCP, Latency: time.Since(sent)}
}

// Local is the flow's own address.
func (f *Flow) Local() netip.AddrPort {
	switch a := f.conn.LocalAddr().(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// Close ends the flow.
func (f *Flow) Close() error { return f.conn.Close() }
