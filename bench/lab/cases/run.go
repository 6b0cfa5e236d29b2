package cases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

// patience is how long a probe may take that is to be answered, allowed or refused. Only what is dropped is given up
// sooner: silence takes as long as one waits for it.
const patience = 10 * time.Second

// stepTime bounds one step of a case.
const stepTime = time.Minute

// Variant is one way to run a case.
type Variant struct {
	Nodes    int
	DenyWith string
}

// Variants are all ways. Each of them is IPv4 and IPv6.
var Variants = []Variant{{1, "drop"}, {1, "reject"}, {2, "drop"}, {2, "reject"}}

// String is as "one-drop".
func (v Variant) String() string {
	return [...]string{"none", "one", "two"}[v.Nodes] + "-" + v.DenyWith
}

// Runner runs cases. It keeps a lab for each variant, so that a case costs a few changes and probes. Run may be called
// from several goroutines; those of one variant take turns.
type Runner struct {
	agent string
	seats map[Variant]*seat
}

// seat is the lab of a variant.
type seat struct {
	mu    sync.Mutex
	lab   *lab.Lab
	world world
	base  world
}

// NewRunner makes a runner; agent is the path of the firstpacket binary.
func NewRunner(agent string) *Runner {
	r := &Runner{agent: agent, seats: make(map[Variant]*seat)}
	for _, v := range Variants {
		r.seats[v] = &seat{}
	}
	return r
}

// Close takes the labs away.
func (r *Runner) Close() error {
	var errs []error
	for _, s := range r.seats {
		s.mu.Lock()
		errs = append(errs, s.close())
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (s *seat) close() error {
	if s.lab == nil {
		return nil
	}
	l := s.lab
	s.lab = nil
	return l.Close()
}

// Report is how a case went in one variant.
type Report struct {
	// Probes is the number of connections tried.
	Probes int
	// Failures are the cells that differ, one a line, in words.
	Failures []string
}

// Run carries a case out. What differs from its expectations is in the report; the error is about the lab.
func (r *Runner) Run(ctx context.Context, c *Case, v Variant) (Report, error) {
	s := r.seats[v]
	s.mu.Lock()
	defer s.mu.Unlock()
	var report Report
	if err := ctx.Err(); err != nil {
		return report, err
	}
	err := r.open(ctx, s, v)
	for i := 0; err == nil && i < len(c.steps); i++ {
		if err = s.step(ctx, &c.steps[i], v, &report); err != nil {
			err = fmt.Errorf("%s, %s, line %d: %w", c.Name, v, c.steps[i].line, err)
		}
	}
	if err == nil || errors.Is(err, errCase) {
		err = errors.Join(err, s.reset(ctx))
	}
	if err != nil && !errors.Is(err, errCase) {
		// The next case begins with a new lab.
		err = errors.Join(err, s.close())
	}
	return report, err
}

// errCase marks mistakes in cases, which do no harm to the lab.
var errCase = errors.New("the case cannot be run")

// The machines outside; addresses are of documentation ranges (RFC 5737, RFC 3849).
func outside() []lab.Outside {
	ports := []corev1.ContainerPort{
		{ContainerPort: 80, Protocol: corev1.ProtocolTCP}, {ContainerPort: 81, Protocol: corev1.ProtocolTCP},
		{ContainerPort: 53, Protocol: corev1.ProtocolUDP},
	}
	addrs := func(a, b string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr(b)} }
	return []lab.Outside{
		{Name: "world", Addrs: addrs("203.0.113.7", "2001:db8::7"), Ports: ports},
		{Name: "other", Addrs: addrs("198.51.100.9", "2001:db8:1::9"), Ports: ports},
	}
}

// open makes the lab if there is none.
func (r *Runner) open(ctx context.Context, s *seat, v Variant) error {
	if s.lab != nil {
		return nil
	}
	content, err := files.ReadFile("cluster.yaml")
	if err != nil {
		return fmt.Errorf("read cluster: %w", err)
	}
	objects, err := parseFor(string(content), v.Nodes)
	if err != nil {
		return err
	}
	s.base, s.world = make(world), make(world)
	for _, o := range objects {
		s.base[topology.RefOf(o)] = clone(o)
		s.world[topology.RefOf(o)] = clone(o)
	}
	s.lab, err = lab.New(ctx, objects, lab.Options{
		Outside: outside(), AgentBinary: r.agent, AgentArgs: []string{"--deny-with", v.DenyWith, "--queues", "1"},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	return s.lab.WaitReady(ctx)
}

func (s *seat) step(ctx context.Context, st *step, v Variant, report *Report) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	switch {
	case st.apply != "":
		objects, err := parseFor(st.apply, v.Nodes)
		if err != nil {
			return err
		}
		return s.apply(ctx, objects)
	case st.labels != nil:
		var objects []topology.Object
		for _, r := range st.labels {
			o, err := s.world.relabel(r)
			if err != nil {
				return err
			}
			objects = append(objects, o)
		}
		return s.apply(ctx, objects)
	case st.deletes != nil:
		for _, ref := range st.deletes {
			if s.world[ref] == nil {
				return fmt.Errorf("%w: there is no %s to delete", errCase, ref)
			}
			delete(s.world, ref)
		}
		return s.lab.Delete(ctx, st.deletes...)
	case st.asks != nil:
		if err := s.lab.WaitApplied(ctx); err != nil {
			return err
		}
		return s.resolve(st.asks)
	case st.expects && (st.nodes == 0 || st.nodes == v.Nodes):
		if err := s.lab.WaitApplied(ctx); err != nil {
			return err
		}
		return s.expect(ctx, st.claims, v, report)
	}
	return nil
}

func (s *seat) apply(ctx context.Context, objects []topology.Object) error {
	copies := make([]topology.Object, 0, len(objects))
	for _, o := range objects {
		if (o.GetNamespace() == "") != clusterScoped(topology.RefOf(o).Kind) {
			return fmt.Errorf("%w: %s needs a namespace, or must have none", errCase, topology.RefOf(o))
		}
		s.world[topology.RefOf(o)] = o
		copies = append(copies, clone(o))
	}
	return s.lab.Apply(ctx, copies...)
}

// reset takes back what the case did.
func (s *seat) reset(ctx context.Context) error {
	var gone []topology.Ref
	var back []topology.Object
	for ref := range s.world {
		if s.base[ref] == nil {
			gone = append(gone, ref)
			delete(s.world, ref)
		}
	}
	for ref, o := range s.base {
		if s.world[ref] != o {
			back = append(back, clone(o))
			s.world[ref] = o
		}
	}
	if err := s.lab.Delete(ctx, gone...); err != nil {
		return err
	}
	return s.lab.Apply(ctx, back...)
}

// expect probes every cell and notes those that differ from the claims.
func (s *seat) expect(ctx context.Context, claims []claim, v Variant, report *Report) error {
	questions, probes := s.questions(claims)
	wants := make([]bool, len(questions))
	used := make([]bool, len(claims))
	for i, q := range questions {
		allow, _ := verdict(claims, q)
		for j := range claims {
			used[j] = used[j] || claims[j].about(q)
		}
		wants[i] = allow
		if probes[i].Wait = patience; !allow && v.DenyWith == "drop" {
			probes[i].Wait = probe.DefaultWait
		}
	}
	for j, u := range used {
		if !u && (v.Nodes != 1 || !strings.Contains(claims[j].text, "node/other")) {
			return fmt.Errorf("%w: line %d: %q is about nothing that can be probed", errCase, claims[j].line, claims[j].text)
		}
	}
	results, err := s.lab.Probe(ctx, probes...)
	if err != nil {
		return err
	}
	report.Probes += len(results)
	for i, r := range results {
		if problem := judge(questions[i], r, wants[i], v); problem != "" {
			report.Failures = append(report.Failures, explain(claims, questions[i], problem))
		}
	}
	return nil
}

// judge says what is wrong with a result, nothing if it is as it should be.
func judge(q question, r probe.Result, allow bool, v Variant) string {
	switch {
	case allow && r.Outcome == probe.Reached && (q.to.isService() || r.By == q.to.name):
	case allow:
		return r.String() + ", want reached"
	case !r.Denied() || r.Connected:
		return r.String() + ", want denied"
	case v.DenyWith == "reject" && r.Outcome != probe.Refused:
		return r.String() + ", want refused"
	case v.DenyWith == "drop" && r.Outcome != probe.Silent && !q.from.local:
		return r.String() + ", want silence"
	}
	return ""
}

func explain(claims []claim, q question, problem string) string {
	text := fmt.Sprintf("%s: %s", q, problem)
	if _, by := verdict(claims, q); by >= 0 {
		text += fmt.Sprintf(" (line %d: %s)", claims[by].line, claims[by].text)
	}
	return text
}
