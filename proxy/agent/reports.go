package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/proxy/report"
)

// openReports prepares what is to be written to the API server.
func (a *agent) openReports() error {
	if a.cfg.ReportPolicies {
		w, err := report.New(report.Config{
			API: a.source.api, Namespace: a.cfg.LeaseNamespace, LeaseDuration: a.cfg.LeaseDuration,
			// The next agent of the node begins before this one ends.
			Identity: fmt.Sprintf("%s_%016x", a.cfg.NodeName, rand.Uint64()), Instance: a.cfg.NodeName,
			Policies: a.controller.reported, Audit: a.cfg.Audit, Log: a.cfg.Log,
		})
		if err != nil {
			return fmt.Errorf("--report-policies: %w", err)
		}
		a.controller.reporter.Store(w)
	}
	if a.cfg.PodEvents {
		var err error
		a.podEvents, err = report.NewPods(report.PodsConfig{
			API: a.source.api, Instance: a.cfg.NodeName, Flows: a.flows, Log: a.cfg.Log,
		})
		if err != nil {
			return fmt.Errorf("--pod-events: %w", err)
		}
	}
	return nil
}

// reported are the policies that there may be something to write about.
func (c *controller) reported() []*rule.Policy {
	c.turn.Lock()
	defer c.turn.Unlock()
	var list []*rule.Policy
	for _, p := range c.state.Policies() {
		if report.Wants(p) {
			list = append(list, p)
		}
	}
	return list
}

// logProblems tells of problems that are new, and of those that are gone.
func (c *controller) logProblems(before, now map[string][]string) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if !slices.Equal(before[name], now[name]) {
			c.log.Warn().Str("policy", name).Strs("problems", now[name]).
				Msg("a policy cannot be understood in full; it fails closed")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if now[name] == nil {
			c.log.Info().Str("policy", name).Msg("the policy has no problems any more")
		}
	}
}
