package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/report"
	"github.com/firstpacket/firstpacket/bench/world"
)

// eventTarget is the design's bound, in milliseconds.
const eventTarget = 20

// events takes the time from a policy's change to the end of the first connection that obeys it. The tuple is one that
// the kernel has a verdict of, allowed or denied, so that this has to be forgotten in time, too.
func (s *Suite) events(ctx context.Context) error {
	w := world.World{Pods: pick(s, 10_000, 10_000, 100), StagePolicies: 1, Policies: pick(s, 999, 999, 9)}
	ours, err := s.keep(s.openAgent(ctx, agentName(w.Policies+1), w, "--deny-with", "reject"))
	if err != nil {
		return err
	}
	took, err := s.flips(ctx, ours, func(admit bool) error {
		_, err := ours.agent.feed.Update(stagePolicy(admit))
		return err
	})
	if err != nil {
		return err
	}
	s.addEvents("policy_event_ms_p99",
		"from a watch event to the first connection that obeys, 10,000 pods, 1,000 policies", took, eventTarget)
	if s.cfg.Quick {
		return nil
	}
	return s.manifestEvents(ctx, w)
}

// stagePolicy lets the clients in, or somebody who is not there.
func stagePolicy(admit bool) *networkingv1.NetworkPolicy {
	if admit {
		return world.StagePolicy(0, "client", 1)
	}
	return world.StagePolicy(0, "nobody", 1)
}

// manifestEvents is the same with a directory of manifests, of which one file is replaced.
func (s *Suite) manifestEvents(ctx context.Context, w world.World) error {
	dir := filepath.Join(s.dir, "manifests")
	if err := writeManifests(dir, w); err != nil {
		return err
	}
	name := filepath.Join(dir, stageFile)
	ours, err := s.keep(s.with(agentName(w.Policies+1), func(c *contender) error {
		return s.startAgent(ctx, c, dir, []string{"--deny-with", "reject"})
	}))
	if err != nil {
		return err
	}
	took, err := s.flips(ctx, ours, func(admit bool) error { return replace(name, stagePolicy(admit)) })
	if err != nil {
		return err
	}
	s.addEvents("policy_event_manifests_ms_p99",
		"from the replacement of a manifest to the first connection that obeys, 10,000 pods, 1,000 policies", took, 0)
	return nil
}

// flips changes the policy again and again and returns how long each change took, in order of size.
func (s *Suite) flips(ctx context.Context, c *contender, change func(admit bool) error) ([]time.Duration, error) {
	var took []time.Duration
	for i := range pick(s, 300, 110, 2) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		admit := i%2 == 1
		job := load.Job{
			Kind: load.Flip, Tuples: cachedTuple(), Rate: probeRate, Duration: 5 * time.Second, Want: load.Refused,
		}
		before := load.Accepted
		if admit {
			job.Want, before = load.Accepted, load.Refused
		}
		// Until now the tuple has the other outcome.
		probe := job
		probe.Want, probe.Limit = before, 1
		if r, err := c.load.Do(probe); err != nil {
			return nil, err
		} else if r.At == 0 {
			return nil, fmt.Errorf("%w: before change %d, connections are not %s", errUnbelievable, i+1, before)
		}
		type answer struct {
			r   load.Result
			err error
		}
		answered := make(chan answer, 1)
		go func() {
			r, err := c.load.Do(job)
			answered <- answer{r, err}
		}()
		time.Sleep(eventLead)
		start := load.Now()
		if err := change(admit); err != nil {
			return nil, errors.Join(err, (<-answered).err)
		}
		a := <-answered
		if a.err != nil {
			return nil, a.err
		}
		if a.r.At < start {
			return nil, fmt.Errorf("%w: change %d was never obeyed, or before it was made", errUnbelievable, i+1)
		}
		took = append(took, time.Duration(a.r.At-start))
		time.Sleep(eventPause)
	}
	slices.Sort(took)
	return took, nil
}

const (
	// eventPause lies between changes, so that what an agent does after one, a pass over the conntrack table for flows to
	// revoke, is not in the way of the next.
	eventPause = 30 * time.Millisecond
	// eventLead is what the client needs to begin.
	eventLead = 5 * time.Millisecond
)

// probeRate is how often a connection is tried, a second: what it adds to the times is one part of this.
const probeRate = 4000

func (s *Suite) addEvents(name, title string, took []time.Duration, target float64) {
	at := func(q float64) float64 {
		i := max(int(math.Ceil(q*float64(len(took))))-1, 0) // nearest rank
		return float64(took[i]) / float64(time.Millisecond)
	}
	r := report.Result{
		Name: name, Title: title, Unit: "ms", Value: at(0.99), Baseline: eventTarget, Against: "the target",
		Ratio: at(0.99) / eventTarget, Checked: "Before each change, the connection had the other outcome.",
	}
	c := report.Contender{Name: "firstpacket", Median: at(0.5), Low: at(0.25), High: at(0.75), Turns: len(took)}
	for _, d := range took {
		c.Latency.Add(d)
	}
	r.Contenders = []report.Contender{c}
	s.add(r, min(target/eventTarget, 1), target > 0)
}

const stageFile = "stage-policy.yaml"

// writeManifests writes the world in files of some hundred objects, and the stage's policy into one of its own.
func writeManifests(dir string, w world.World) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	var b strings.Builder
	var files, objects int
	flush := func() error {
		name := filepath.Join(dir, fmt.Sprintf("part-%04d.yaml", files))
		files++
		objects = 0
		err := os.WriteFile(name, []byte(b.String()), 0o644)
		b.Reset()
		return err
	}
	add := func(o any) error {
		y, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		b.WriteString("---\n")
		b.Write(y)
		if objects++; objects < 500 {
			return nil
		}
		return flush()
	}
	var err error
	for o := range w.Namespaces {
		err = errors.Join(err, add(o))
	}
	for o := range w.Nodes {
		err = errors.Join(err, add(o))
	}
	for o := range w.EachPod {
		err = errors.Join(err, add(o))
	}
	for o := range w.EachPolicy {
		if o.Namespace != world.Namespace {
			err = errors.Join(err, add(o))
		}
	}
	if err = errors.Join(err, flush(), replace(filepath.Join(dir, stageFile), stagePolicy(true))); err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	return nil
}

// replace writes a manifest beside the file and renames it, so that readers see the old content or the new.
func replace(name string, o any) error {
	y, err := yaml.Marshal(o)
	if err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(next, y, 0o644); err != nil {
		return err
	}
	return os.Rename(next, name)
}
