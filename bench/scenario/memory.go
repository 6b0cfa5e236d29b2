package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/bench/report"
	"github.com/firstpacket/firstpacket/bench/world"
)

// memoryTarget is the design's bound, in MiB.
const memoryTarget = 120

// stagePolicies is how many of a large cluster's policies select the pods of the node.
const stagePolicies = 10

// memory takes the resident set of an agent in clusters up to the largest that the design names.
func (s *Suite) memory(ctx context.Context) error {
	const plot = "Memory of the agent by pods in the cluster"
	for _, size := range pick(s, [][2]int{{100, 10}, {10_000, 1000}, {50_000, 5000}, {100_000, 10_000}},
		[][2]int{{100_000, 10_000}}, [][2]int{{200, 20}}) {
		pods, policies := size[0], size[1]
		name := fmt.Sprintf("firstpacket, %d pods, %d policies", pods, policies)
		w := world.World{Pods: pods, StagePolicies: stagePolicies, Policies: policies - stagePolicies}
		begin := time.Now()
		c, err := s.openAgent(ctx, name, w)
		if err != nil {
			return err
		}
		ready := time.Since(begin)
		m, err := settled(ctx, c.process)
		if err = errors.Join(err, s.counted(ctx, c, w, policies), c.close()); err != nil {
			return err
		}
		const unit = "MiB"
		s.pointAt(plot, "resident, settled", "pods", unit, float64(pods), m.resident)
		s.pointAt(plot, "resident, peak", "pods", unit, float64(pods), m.peak)
		s.logf("  %s: ready after %.1f s, %.0f MiB, of which %.0f are the program's own pages; peak %.0f",
			name, ready.Seconds(), m.resident, m.file, m.peak)
		if pods != pick(s, 100_000, 100_000, 200) {
			continue
		}
		s.add(report.Result{
			Name: "rss_mb_100k_pods", Title: "resident memory of the agent with 100,000 pods and 10,000 policies", Unit: unit,
			Value: m.resident, Baseline: memoryTarget, Against: "the target", Ratio: m.resident / memoryTarget,
			Checked: "The agent's metrics count as many pods and policies as were made.",
		}, 1, true)
		s.add(report.Result{
			Name: "rss_mb_100k_pods_peak", Title: "the same at its peak, while the cluster is listed", Unit: unit,
			Value: m.peak, Baseline: memoryTarget, Against: "the target", Ratio: m.peak / memoryTarget,
		}, 0, false)
		s.add(report.Result{
			Name: "start_s_100k_pods", Title: "from the start of the agent until it enforces, 100,000 pods and 10,000 policies",
			Unit: "s", Value: ready.Seconds(), Baseline: 1, Against: "a second", Ratio: ready.Seconds(),
		}, 0, false)
	}
	return nil
}

// counted checks that the agent knows the whole cluster.
func (s *Suite) counted(ctx context.Context, c *contender, w world.World, policies int) error {
	m, err := c.agent.Metrics(ctx)
	if err != nil {
		return err
	}
	pods := w.Pods + world.Servers + world.Clients + 1
	if got := int(m.Sum("firstpacket_objects", `kind="Pod"`)); got != pods {
		return fmt.Errorf("%w: the agent knows %d pods of %d", errUnbelievable, got, pods)
	}
	if got := int(m.Sum("firstpacket_policies")); got != policies {
		return fmt.Errorf("%w: the agent knows %d policies of %d", errUnbelievable, got, policies)
	}
	return nil
}

// usage is a process's memory in MiB; file is the part of resident that is backed by files, the program's own.
type usage struct{ resident, peak, file float64 }

// settled waits until the resident set has stopped to shrink, for some seconds at most.
func settled(ctx context.Context, pid int) (usage, error) {
	const step, calm, patience = 250 * time.Millisecond, 2 * time.Second, 15 * time.Second
	lowest, err := memoryOf(pid)
	since := time.Now()
	for begin := since; err == nil && time.Since(since) < calm && time.Since(begin) < patience; {
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return lowest, ctx.Err()
		}
		var now usage
		if now, err = memoryOf(pid); now.resident < lowest.resident-1 {
			lowest, since = now, time.Now()
		}
	}
	if err != nil {
		return lowest, err
	}
	return memoryOf(pid)
}

func memoryOf(pid int) (usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, fmt.Errorf("read the agent's memory: %w", err)
	}
	var u usage
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		to := map[string]*float64{"VmRSS": &u.resident, "VmHWM": &u.peak, "RssFile": &u.file}[name]
		if to == nil {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		if err != nil {
			return usage{}, fmt.Errorf("read the agent's memory: %w", err)
		}
		*to = float64(kib) / 1024
	}
	return u, nil
}
