// Package dns is a DNS server and a resolver for labs: the server says what it was told to say, and the resolver asks
// one question and takes the answer as it comes.
package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// Port is the server's.
const Port = 53

// Record is one of a zone: an address of the name, or the name that it is an alias of.
type Record struct {
	// Name has no dot at the end.
	Name string
	// TTL is in seconds.
	TTL   uint32
	Alias string
	Addr  netip.Addr
}

// LargePrefix begins names whose answers are truncated over UDP.
const LargePrefix = "large."

// Server answers on UDP and TCP in one namespace until Close.
type Server struct {
	wg      sync.WaitGroup
	udp     *net.UDPConn
	tcp     *net.TCPListener
	mu      sync.Mutex
	records []Record
	conns   map[net.Conn]struct{}
}

// Serve begins to answer on every address of the namespace.
func Serve(n *ns.Namespace) (*Server, error) {
	s := &Server{conns: make(map[net.Conn]struct{})}
	err := n.Do(func() (err error) {
		if s.udp, err = net.ListenUDP("udp", &net.UDPAddr{Port: Port}); err != nil {
			return err
		}
		s.tcp, err = net.ListenTCP("tcp", &net.TCPAddr{Port: Port})
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve DNS in %s: %w", n.Name(), err), s.Close())
	}
	s.wg.Go(s.datagrams)
	s.wg.Go(s.streams)
	return s, nil
}

// Set replaces the records.
func (s *Server) Set(records ...Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = records
}

// Close ends the server and waits for it.
func (s *Server) Close() error {
	var errs []error
	if s.udp != nil {
		errs = append(errs, s.udp.Close())
	}
	if s.tcp != nil {
		errs = append(errs, s.tcp.Close())
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) datagrams() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			if answer := s.answer(buf[:n], false); answer != nil {
				_, _ = s.udp.WriteToUDPAddrPort(answer, from)
			}
		}
	}
}

func (s *Server) streams() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			defer c.Close()
			for {
				query, err := readFrame(c)
				if err != nil {
					break
				}
				if answer := s.answer(query, true); answer == nil || writeFrame(c, answer) != nil {
					break
				}
			}
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// answer gives every record on the way from the name along its aliases.
func (s *Server) answer(query []byte, whole bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Answers, m.Additionals = true, true, nil, nil
	name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
	if m.Truncated = !whole && strings.HasPrefix(name, LargePrefix); !m.Truncated {
		m.Answers = s.lookup(name, q.Type)
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (s *Server) lookup(name string, kind dnsmessage.Type) (answers []dnsmessage.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range len(s.records) + 1 {
		next := ""
		for _, r := range s.records {
			if r.Name != name {
				continue
			}
			head := dnsmessage.ResourceHeader{
				Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET, TTL: r.TTL,
			}
			switch {
			case r.Alias != "":
				next = r.Alias
				answers = append(answers, dnsmessage.Resource{
					Header: head, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.Alias + ".")},
				})
			case r.Addr.Is4() && kind == dnsmessage.TypeA:
				answers = append(answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: r.Addr.As4()}})
			case r.Addr.Is6() && kind == dnsmessage.TypeAAAA:
				body := &dnsmessage.AAAAResource{AAAA: r.Addr.As16()}
				answers = append(answers, dnsmessage.Resource{Header: head, Body: body})
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	return answers
}

// Question is what a resolver asks.
type Question struct {
	// From is where it asks, To the server.
	From *ns.Namespace
	To   netip.AddrPort
	Name string
	V6   bool
	// Wait bounds one exchange.
	Wait time.Duration
}

// Resolve asks over UDP, and over TCP if the answer was truncated. It returns the addresses.
func Resolve(q Question) (addrs []netip.Addr, err error) {
	err = q.From.Do(func() error {
		var m dnsmessage.Message
		if m, err = q.exchange("udp"); err == nil && m.Truncated {
			m, err = q.exchange("tcp")
		}
		for _, a := range m.Answers {
			switch body := a.Body.(type) {
			case *dnsmessage.AResource:
				addrs = append(addrs, netip.AddrFrom4(body.A))
			case *dnsmessage.AAAAResource:
				addrs = append(addrs, netip.AddrFrom16(body.AAAA))
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("resolve %s in %s: %w", q.Name, q.From.Name(), err)
	}
	return addrs, nil
}

// Query packs a question with an id.
func Query(id uint16, name string, v6 bool) ([]byte, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	if v6 {
		m.Questions[0].Type = dnsmessage.TypeAAAA
	}
	return m.Pack()
}

func (q *Question) exchange(network string) (m dnsmessage.Message, err error) {
	query, err := Query(uint16(rand.Uint32()), q.Name, q.V6)
	if err != nil {
		return m, err
	}
	c, err := net.DialTimeout(network, q.To.String(), q.Wait)
	if err != nil {
		return m, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(q.Wait)); err != nil {
		return m, err
	}
	if network == "tcp" {
		if err := writeFrame(c, query); err != nil {
			return m, err
		}
		answer, err := readFrame(c)
		if err != nil {
			return m, err
		}
		err = m.Unpack(answer)
		return m, err
	}
	if _, err := c.Write(query); err != nil {
		return m, err
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		return m, err
	}
	err = m.Unpack(buf[:n])
	return m, err
}

// readFrame and writeFrame are DNS over TCP: a message behind its length (RFC 1035, 4.2.2).
func readFrame(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFrame(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
