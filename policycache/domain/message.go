package domain

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Errors of parsing. Both mean that nothing can be learned from the message.
var (
	// ErrMessage: the bytes are no DNS message, or one that contradicts itself.
	ErrMessage = errors.New("not a DNS message")
	// ErrIrrelevant: the message has no part in finding addresses: it is not a plain question for A or AAAA of the
	// Internet, nor the answer to one.
	ErrIrrelevant = errors.New("no question for addresses")
)

// Question identifies an exchange between a resolver and a server. It is comparable: an answer belongs to a query if,
// between the same ports, the two have equal Questions.
type Question struct {
	// ID is chosen by the resolver.
	ID uint16
	// Name is as in the message, with the dot at the end and in the letters' own case, which resolvers may choose at
	// random to make answers hard to forge (draft-vixie-dnsext-dns0x20).
	Name string
	// V6 asks for AAAA, otherwise A.
	V6 bool
}

// Answer is what a server says in answer to a Question.
type Answer struct {
	// Names are the one that was asked for and all that it is an alias of, in lower case without the dot at the end.
	Names []string
	// Addrs are the addresses of the last of them, each once. None if the name has none or the message is truncated.
	Addrs []netip.Addr
	// TTL is the least of all records on the way.
	TTL time.Duration
}

// maxAliases bounds the chain of CNAME records.
const maxAliases = 16

// ParseQuery reads a query. Its error wraps ErrMessage or ErrIrrelevant.
func ParseQuery(b []byte) (Question, error) {
	var p dnsmessage.Parser
	q, _, err := parseQuestion(&p, b, false)
	return q, err
}

// ParseResponse reads the answer to a query, the question that it repeats first. Its error wraps ErrMessage or
// ErrIrrelevant; the Question is not zero if that much could be read.
func ParseResponse(b []byte) (Question, Answer, error) {
	var p dnsmessage.Parser
	q, h, err := parseQuestion(&p, b, true)
	if err != nil || h.Truncated || h.RCode != dnsmessage.RCodeSuccess {
		return q, Answer{}, err
	}
	c := chain{kind: dnsmessage.TypeA, aliases: map[string]alias{}, owners: map[string]*record{}}
	if q.V6 {
		c.kind = dnsmessage.TypeAAAA
	}
	if err := c.read(&p); err != nil {
		return q, Answer{}, err
	}
	a, err := c.follow(normal(q.Name))
	return q, a, err
}

// parseQuestion reads the header and the only question, and leaves p at the answers.
func parseQuestion(p *dnsmessage.Parser, b []byte, response bool) (Question, dnsmessage.Header, error) {
	h, err := p.Start(b)
	if err != nil {
		return Question{}, h, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if h.Response != response || h.OpCode != 0 {
		return Question{}, h, ErrIrrelevant
	}
	q, err := p.Question()
	if err != nil {
		return Question{}, h, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return Question{}, h, fmt.Errorf("%w: more than one question", ErrMessage)
	}
	if q.Class != dnsmessage.ClassINET || q.Type != dnsmessage.TypeA && q.Type != dnsmessage.TypeAAAA {
		return Question{}, h, ErrIrrelevant
	}
	return Question{ID: h.ID, Name: q.Name.String(), V6: q.Type == dnsmessage.TypeAAAA}, h, nil
}

// chain gathers the records of an answer section that can matter.
type chain struct {
	kind    dnsmessage.Type
	aliases map[string]alias
	owners  map[string]*record
}

type alias struct {
	target string
	ttl    uint32
}

type record struct {
	addrs []netip.Addr
	ttl   uint32
}

func (c *chain) read(p *dnsmessage.Parser) error {
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err == nil {
			err = c.add(p, &h)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMessage, err)
		}
	}
}

var errTwoAliases = errors.New("a name is an alias of two others")

func (c *chain) add(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader) error {
	if h.Class != dnsmessage.ClassINET || h.Type != c.kind && h.Type != dnsmessage.TypeCNAME {
		return p.SkipAnswer()
	}
	name, ttl := normal(h.Name.String()), h.TTL
	if ttl > 1<<31-1 {
		ttl = 0 // RFC 2181, section 8
	}
	var addr netip.Addr
	switch h.Type {
	case dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		if err != nil {
			return err
		}
		target := normal(r.CNAME.String())
		if have, ok := c.aliases[name]; ok && have.target != target {
			return errTwoAliases
		} else if ok {
			ttl = min(ttl, have.ttl)
		}
		c.aliases[name] = alias{target, ttl}
		return nil
	case dnsmessage.TypeA:
		r, err := p.AResource()
		if err != nil {
			return err
		}
		addr = netip.AddrFrom4(r.A)
	default:
		r, err := p.AAAAResource()
		if err != nil {
			return err
		}
		addr = netip.AddrFrom16(r.AAAA)
	}
	r := c.owners[name]
	if r == nil {
		r = &record{ttl: ttl}
		c.owners[name] = r
	}
	r.ttl = min(r.ttl, ttl)
	r.addrs = append(r.addrs, addr)
	return nil
}

var errLoop = fmt.Errorf("the aliases run in a circle, or there are more than %d", maxAliases)

// follow goes from the name along the aliases.
func (c *chain) follow(name string) (Answer, error) {
	a := Answer{Names: []string{name}}
	ttl := uint32(1<<31 - 1)
	for {
		next, ok := c.aliases[name]
		if !ok {
			break
		}
		if len(a.Names) > maxAliases {
			return Answer{}, fmt.Errorf("%w: %w", ErrMessage, errLoop)
		}
		name, ttl = next.target, min(ttl, next.ttl)
		a.Names = append(a.Names, name)
	}
	r := c.owners[name]
	if r == nil {
		return Answer{}, nil // the name exists and has no such address
	}
	seen := make(map[netip.Addr]bool, len(r.addrs))
	for _, addr := range r.addrs {
		if !seen[addr] && reachable(addr) {
			a.Addrs = append(a.Addrs, addr)
		}
		seen[addr] = true
	}
	a.TTL = time.Duration(min(ttl, r.ttl)) * time.Second
	return a, nil
}

// reachable tells addresses of other machines from those that mean something else: no name should open the way to
// loopback, link-local or multicast addresses. A mapped address in an AAAA record would be another in the packet.
func reachable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6()
}

// normal is the form in which names are compared: in lower case, without the dot at the end.
func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
