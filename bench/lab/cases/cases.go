// Package cases holds what policy means as a collection of examples, in every dialect, and runs them on real packets.
//
// A case is a text file, <topic>/<name>.txt: a sentence on what it shows, then sections that are carried out in order.
//
//	What the case shows, in a sentence or two.
//
//	-- apply --        manifests to create or replace, as for kubectl
//	-- label --        labels to set or remove: "pod x/a role=web tier-", "namespace w team=red"
//	-- delete --       objects to delete: "networkpolicy x/deny", "pod x/a", "namespace w"; "alpha x/p" and
//	                   "beta x/p" are policies of these dialects
//	-- resolve --      pods that ask the cluster's DNS server for a name: "x/a www.example.com". The server is the pod
//	                   kube-system/coredns, which the case applies; resolve.go has its zone.
//	-- expect --       who reaches whom from now on
//
// Everything is allowed but for what the lines of an expect section say; later lines win over earlier ones:
//
//	deny  * -> x/*                     nobody reaches the pods of namespace x
//	allow w/a,w/b -> x/a 80 53/UDP     these two do, on these ports; a port without protocol is TCP
//	allow v4 outside/world -> x/*      on IPv4 only
//
// "*" stands for all pods and for the machines outside the cluster. Nodes and Services take part only where a line
// names them: "node/own" is the node that the other side, a pod, runs on, "node/other" is any other, and "svc/x/web" is
// a Service by its ClusterIPs. "expect on one node" and "expect on two nodes" count there only.
//
// Each case begins with the pods of cluster.yaml and no policy, and is run on one node and on two, with packets dropped
// and rejected, and with every pair probed on IPv4 and on IPv6. On one node, what cluster.yaml or the case puts on node
// two is on node one.
package cases

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

//go:embed cluster.yaml */*.txt
var files embed.FS

// Case is one example.
type Case struct {
	// Name is topic/name.
	Name string
	// Text is what it shows.
	Text  string
	steps []step
}

// Topic is the first part of the name.
func (c *Case) Topic() string { return path.Dir(c.Name) }

// All returns every case in the order of their names.
func All() ([]*Case, error) {
	var all []*Case
	names, err := fs.Glob(files, "*/*.txt")
	if err != nil {
		return nil, fmt.Errorf("list cases: %w", err)
	}
	for _, name := range names {
		content, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read case: %w", err)
		}
		c, err := parse(strings.TrimSuffix(name, ".txt"), string(content))
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// Find returns the cases with these names; a topic stands for all of its cases, and no name for all there are.
func Find(names ...string) ([]*Case, error) {
	all, err := All()
	if err != nil || len(names) == 0 {
		return all, err
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(c *Case) bool { return c.Name == name || c.Topic() == name }) {
			return nil, fmt.Errorf("there is no case %q", name)
		}
	}
	return slices.DeleteFunc(all, func(c *Case) bool {
		return !slices.Contains(names, c.Name) && !slices.Contains(names, c.Topic())
	}), nil
}

// step is one section.
type step struct {
	line int
	// expects tells a section that expects everything to be allowed, and so has no claims, from others.
	expects bool
	apply   string
	labels  []relabel
	deletes []topology.Ref
	asks    []ask
	claims  []claim
	// nodes is the number of nodes that an expect section is about; 0 is any.
	nodes int
}

// section is the raw text of a step.
type section struct {
	name string
	// line is the number of the first line of body in the file, from 1.
	line int
	body string
}

// split takes a file apart: the text before the first section, and the sections.
func split(content string) (text string, sections []section) {
	for i, line := range strings.Split(content, "\n") {
		if name, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(name, " --") {
			sections = append(sections, section{name: strings.TrimSuffix(name, " --"), line: i + 2})
			continue
		}
		if len(sections) == 0 {
			text += line + "\n"
		} else {
			sections[len(sections)-1].body += line + "\n"
		}
	}
	return strings.TrimSpace(text), sections
}

func parse(name, content string) (*Case, error) {
	text, sections := split(content)
	c := &Case{Name: name, Text: text}
	if text == "" {
		return nil, fmt.Errorf("case %s: begin with a sentence on what it shows", name)
	}
	expects := false
	for _, s := range sections {
		st, err := parseStep(s)
		if err != nil {
			return nil, fmt.Errorf("case %s, line %d: %w", name, s.line, err)
		}
		expects = expects || st.expects
		c.steps = append(c.steps, st)
	}
	if !expects {
		return nil, fmt.Errorf("case %s: expects nothing", name)
	}
	return c, nil
}

func parseStep(s section) (st step, err error) {
	st.line = s.line
	switch s.name {
	case "apply":
		st.apply = s.body
		err = check(s.body)
	case "label":
		st.labels, err = each(s, parseRelabel)
	case "delete":
		st.deletes, err = each(s, parseRef)
	case "resolve":
		st.asks, err = each(s, parseAsk)
	case "expect", "expect on one node", "expect on two nodes":
		st.nodes = map[string]int{"expect on one node": 1, "expect on two nodes": 2}[s.name]
		st.expects = true
		st.claims, err = each(s, parseClaim)
	default:
		err = fmt.Errorf("unknown section %q", s.name)
	}
	return st, err
}

// each parses the lines of a section that are neither empty nor comments.
func each[T any](s section, parse func(words []string) (T, error)) ([]T, error) {
	var found []T
	for i, line := range strings.Split(s.body, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		one, err := parse(words)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", s.line+i, err)
		}
		if c, ok := any(&one).(*claim); ok {
			c.line = s.line + i
		}
		found = append(found, one)
	}
	return found, nil
}

// kinds are the objects that label and delete sections can name.
var kinds = map[string]string{
	"pod": "Pod", "namespace": "Namespace", "service": "Service", "node": "Node",
	"networkpolicy":              "NetworkPolicy.networking.k8s.io",
	"clusternetworkpolicy":       "ClusterNetworkPolicy.policy.networking.k8s.io",
	"adminnetworkpolicy":         "AdminNetworkPolicy.policy.networking.k8s.io",
	"baselineadminnetworkpolicy": "BaselineAdminNetworkPolicy.policy.networking.k8s.io",
	"beta":                       "NetworkPolicy.extensions",
	"alpha":                      "NetworkPolicy.net.alpha.kubernetes.io",
}

// clusterScoped says whether objects of the kind lie in no namespace.
func clusterScoped(kind string) bool {
	kind, _, _ = strings.Cut(kind, ".")
	switch kind {
	case "Namespace", "Node", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy":
		return true
	}
	return false
}

func parseRef(words []string) (topology.Ref, error) {
	if len(words) != 2 {
		return topology.Ref{}, errors.New("want a kind and a name")
	}
	r := topology.Ref{Kind: kinds[words[0]]}
	if r.Kind == "" {
		return r, fmt.Errorf("unknown kind %q", words[0])
	}
	namespace, name, ok := strings.Cut(words[1], "/")
	if !ok {
		namespace, name = "", words[1]
	}
	if ok == clusterScoped(r.Kind) {
		return r, fmt.Errorf("%q is no name of a %s", words[1], words[0])
	}
	r.Namespace, r.Name = namespace, name
	return r, nil
}

// relabel sets and removes labels of an object.
type relabel struct {
	ref    topology.Ref
	set    map[string]string
	remove []string
}

func parseRelabel(words []string) (relabel, error) {
	if len(words) < 3 {
		return relabel{}, errors.New("want a kind, a name and labels")
	}
	ref, err := parseRef(words[:2])
	r := relabel{ref: ref, set: make(map[string]string)}
	for _, w := range words[2:] {
		if key, value, ok := strings.Cut(w, "="); ok {
			r.set[key] = value
		} else if key, ok := strings.CutSuffix(w, "-"); ok {
			r.remove = append(r.remove, key)
		} else {
			return r, fmt.Errorf("%q neither sets a label (key=value) nor removes one (key-)", w)
		}
	}
	return r, err
}
