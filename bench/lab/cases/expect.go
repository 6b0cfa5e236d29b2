package cases

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// claim is one line of an expect section.
type claim struct {
	line     int
	text     string
	allow    bool
	v4, v6   bool
	from, to []string
	ports    []portClaim // none: all
}

type portClaim struct {
	number uint16
	proto  probe.Proto
}

func parseClaim(words []string) (claim, error) {
	c := claim{text: strings.Join(words, " "), v4: true, v6: true}
	switch words[0] {
	case "allow":
		c.allow = true
	case "deny":
	default:
		return c, fmt.Errorf("%q is neither allow nor deny", words[0])
	}
	words = words[1:]
	if len(words) > 0 && (words[0] == "v4" || words[0] == "v6") {
		c.v4, c.v6 = words[0] == "v4", words[0] == "v6"
		words = words[1:]
	}
	if len(words) < 3 || words[1] != "->" {
		return c, errors.New("want: allow|deny [v4|v6] FROM[,FROM] -> TO[,TO] [PORT...]")
	}
	c.from, c.to = strings.Split(words[0], ","), strings.Split(words[2], ",")
	for _, w := range words[3:] {
		p, err := parsePort(w)
		if err != nil {
			return c, err
		}
		c.ports = append(c.ports, p)
	}
	for _, pattern := range slices.Concat(c.from, c.to) {
		if _, err := path.Match(pattern, ""); err != nil {
			return c, fmt.Errorf("%q: %w", pattern, err)
		}
	}
	return c, nil
}

func parsePort(word string) (portClaim, error) {
	number, proto, _ := strings.Cut(word, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return portClaim{}, fmt.Errorf("port %q: %w", word, err)
	}
	p := portClaim{number: uint16(n), proto: probe.TCP}
	switch proto {
	case "", "TCP":
	case "UDP":
		p.proto = probe.UDP
	default:
		return p, fmt.Errorf("port %q: unknown protocol", word)
	}
	return p, nil
}

// end is one side of a pair, as claims see it.
type end struct {
	name string
	// node is the name of the node that a pod runs on, and of a node itself.
	node string
	// local says that packets leave from a node's own network, whose kernel may refuse them to the sender's face.
	local bool
}

func (e end) outside() bool   { return strings.HasPrefix(e.name, "outside/") }
func (e end) isNode() bool    { return strings.HasPrefix(e.name, "node/") }
func (e end) isService() bool { return strings.HasPrefix(e.name, "svc/") }

// matches says whether the pattern names the end; other is the other end of the pair.
func (e end) matches(pattern string, other end) bool {
	switch pattern {
	case "*":
		return !e.isNode() && !e.isService()
	case "node/own":
		return e.isNode() && e.node == other.node
	case "node/other":
		return e.isNode() && e.node != other.node
	}
	ok, _ := path.Match(pattern, e.name) // checked by parseClaim
	return ok
}

// question is one cell: may this connection come to be?
type question struct {
	from, to end
	port     portClaim
	v6       bool
}

func (q question) String() string {
	family := "IPv4"
	if q.v6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s -> %s %d/%s %s", q.from.name, q.to.name, q.port.number, q.port.proto, family)
}

func (c *claim) about(q question) bool {
	if q.v6 && !c.v6 || !q.v6 && !c.v4 || len(c.ports) > 0 && !slices.Contains(c.ports, q.port) {
		return false
	}
	return slices.ContainsFunc(c.from, func(p string) bool { return q.from.matches(p, q.to) }) &&
		slices.ContainsFunc(c.to, func(p string) bool { return q.to.matches(p, q.from) })
}

// verdict is what the claims say about a question: the index of the one that decides, -1 if none is about it.
func verdict(claims []claim, q question) (allow bool, by int) {
	for i := len(claims) - 1; i >= 0; i-- {
		if claims[i].about(q) {
			return claims[i].allow, i
		}
	}
	return true, -1
}

// names says whether any claim names ends with that prefix; otherwise they take no part.
func names(claims []claim, prefix string) bool {
	return slices.ContainsFunc(claims, func(c claim) bool {
		return slices.ContainsFunc(slices.Concat(c.from, c.to), func(p string) bool { return strings.HasPrefix(p, prefix) })
	})
}
