// Package scenario is the benchmark suite: what firstpacket is measured at, and against what.
//
// Everything happens in network namespaces made here. What is compared exists at the same time, each contender at a
// site of its own, and takes turns round by round; ratios are those of rounds next to each other. Before a rate counts,
// the client's, the server's and the kernel's counts have to agree.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/report"
)

// Config says how to run the suite. Worker, Agent and Log are required.
type Config struct {
	// Worker is a command that calls Worker with its last argument, which is added.
	Worker []string
	// Agent is a program that, run as "Agent agent ...", is a firstpacket agent.
	Agent string
	// Quick takes the headline figures only, with fewer rounds.
	Quick bool
	// Only are the names of groups to run; none means all.
	Only []string
	// Log hears of progress, in lines.
	Log io.Writer
	// tiny is for tests: the shortest run that does everything once.
	tiny bool
}

// Suite runs scenarios. The process must be in a namespace of its own; see ns.Enter.
type Suite struct {
	cfg        Config
	starter    *ns.Starter
	dir        string
	contenders []*contender
	report     *report.Report
}

// group is scenarios that share contenders.
type group struct {
	name  string
	about string
	// quick groups give the headline figures.
	quick bool
	run   func(*Suite, context.Context) error
}

var groups = []group{
	{"verdict", "the verdict function alone", true, (*Suite).verdicts},
	{"connect", "new TCP connections", true, (*Suite).connects},
	{"throughput", "established flows", true, (*Suite).throughput},
	{"event", "from a policy's change to connections that obey", true, (*Suite).events},
	{"memory", "an agent in a large cluster", true, (*Suite).memory},
	{"policies", "rate against the number of policies", false, (*Suite).policies},
	{"denied", "denied connections", false, (*Suite).denied},
	{"udp", "UDP requests and DNS-like bursts", false, (*Suite).udp},
	{"fairness", "one pod's flood and the others' latency", false, (*Suite).fairness},
}

// Groups are the names that Config.Only can hold.
func Groups() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// Run runs the suite. A group that fails is in the report as well as in the error; the others are run all the same.
func Run(ctx context.Context, cfg Config) (*report.Report, error) {
	s := &Suite{cfg: cfg, starter: ns.NewStarter(), report: &report.Report{Started: time.Now(), Quick: cfg.Quick}}
	defer s.starter.Close()
	var err error
	if s.report.Machine, err = report.ThisMachine(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "firstpacket-bench-"); err != nil {
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(s.dir) }()
	var errs []error
	for _, g := range groups {
		if !s.wanted(&g) || ctx.Err() != nil {
			continue
		}
		s.logf("%s: %s", g.name, g.about)
		begin := time.Now()
		err := g.run(s, ctx)
		if err != nil {
			err = fmt.Errorf("%s: %w", g.name, err)
			s.logf("%v", err)
			s.report.Results = append(s.report.Results, report.Result{Name: g.name, Title: g.about, Error: err.Error()})
		}
		errs = append(errs, err, s.closeAll())
		s.logf("%s took %.1f s", g.name, time.Since(begin).Seconds())
	}
	s.report.Elapsed = time.Since(s.report.Started)
	return s.report, errors.Join(append(errs, ctx.Err())...)
}

func (s *Suite) wanted(g *group) bool {
	if len(s.cfg.Only) == 0 {
		return g.quick || !s.cfg.Quick
	}
	return slices.Contains(s.cfg.Only, g.name)
}

func (s *Suite) logf(format string, args ...any) { _, _ = fmt.Fprintf(s.cfg.Log, format+"\n", args...) }

// keep notes a contender to be closed at the end of the group.
func (s *Suite) keep(c *contender, err error) (*contender, error) {
	if err == nil {
		s.contenders = append(s.contenders, c)
	}
	return c, err
}

func (s *Suite) closeAll() error {
	var errs []error
	for _, c := range s.contenders {
		if err := c.close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", c.name, err))
		}
	}
	s.contenders = nil
	return errors.Join(errs...)
}

// add adds a result with what the design asks for.
func (s *Suite) add(r report.Result, target float64, atMost bool) {
	r.Target, r.AtMost = target, atMost
	s.report.Results = append(s.report.Results, r)
	s.logf("  %-28s %s", r.Name, r.Summary())
}

// turn is how long an entry's turn is where the kernel does all the work on the processor of the client.
func (s *Suite) turn() time.Duration { return s.lasting(30, 30) }

// askingTurn is the same where somebody is woken up, an agent or a server: long enough for the scheduler to settle on
// who runs where.
func (s *Suite) askingTurn() time.Duration { return s.lasting(300, 120) }

// lasting is a time in milliseconds, of the kind of run.
func (s *Suite) lasting(full, quick int64) time.Duration {
	return time.Duration(pick(s, full, quick, 20)) * time.Millisecond
}

// pick takes the number for the kind of run.
func pick[T any](s *Suite, full, quick, tiny T) T {
	switch {
	case s.cfg.tiny:
		return tiny
	case s.cfg.Quick:
		return quick
	}
	return full
}
