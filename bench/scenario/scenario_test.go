package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// TestMain also plays the parts of the processes that a Suite starts.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "worker":
		err = Worker(os.Args[2])
	case len(os.Args) > 2 && os.Args[1] == "agent":
		err = runAgent(os.Args[2:])
	default:
		if err = ns.Enter(); err == nil {
			goleak.VerifyTestMain(m)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runAgent is the agent command, as far as the suite uses it.
func runAgent(args []string) error {
	cfg := agent.Config{
		MarkMask: mark.Default, QueueNumber: agent.DefaultQueueNumber, StartTimeout: agent.DefaultStartTimeout,
		HoldTime: agent.DefaultHoldTime, Log: zerolog.New(os.Stderr),
	}
	flags := flag.NewFlagSet("agent", flag.ContinueOnError)
	flags.StringVar(&cfg.NodeName, "node-name", "", "")
	flags.StringVar(&cfg.HTTPAddress, "http-address", "", "")
	flags.StringVar(&cfg.FlowLog, "flow-log", "", "")
	flags.StringVar(&cfg.Manifests, "manifests", "", "")
	flags.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "")
	deny := flags.String("deny-with", "drop", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if cfg.DenyWith, err = ruleset.ParseDenyWith(*deny); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return agent.Run(ctx, cfg)
}

// TestGroups runs every scenario once, as short as it goes. That the suite believes its counts is the test.
func TestGroups(t *testing.T) {
	for _, name := range Groups() {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			r, err := Run(t.Context(), Config{
				Worker: []string{"/proc/self/exe", "worker"}, Agent: "/proc/self/exe", Only: []string{name}, Log: &log, tiny: true,
			})
			if err != nil {
				t.Fatalf("%v\n%s", err, log.String())
			}
			if len(r.Results) == 0 {
				t.Fatal("no results")
			}
			for _, s := range r.Results {
				if s.Value <= 0 && s.Name != "verdict_allocs" || s.Error != "" {
					t.Errorf("%s: %s", s.Name, s.Summary())
				}
			}
			var b bytes.Buffer
			if err := r.WriteHeadlines(&b); err != nil {
				t.Fatal(err)
			}
			headlines := map[string]map[string]any{}
			if err := json.Unmarshal(b.Bytes(), &headlines); err != nil || len(headlines) != len(r.Results) {
				t.Errorf("%v: %s", err, b.String())
			}
		})
	}
}

// TestDisagreementIsAnError has counts that cannot be believed.
func TestDisagreementIsAnError(t *testing.T) {
	queue := &contender{queued: func() (uint64, error) { return 0, nil }}
	cached := entry{contender: queue, job: load.Job{Kind: load.Connect, Want: load.Accepted}}
	fresh, denied := cached, cached
	fresh.asks, denied.asks, denied.job.Want = 1, 1, load.Refused
	for name, c := range map[string]struct {
		entry                                      entry
		begun, accepted, refused, lost, saw, asked int
		fine                                       bool
	}{
		"all went well":             {fresh, 9, 9, 0, 0, 9, 9, true},
		"nothing happened":          {cached, 0, 0, 0, 0, 0, 0, false},
		"the server saw fewer":      {cached, 9, 9, 0, 0, 5, 0, false},
		"the server saw more":       {cached, 9, 9, 0, 0, 10, 0, false},
		"some were refused":         {cached, 9, 8, 1, 0, 8, 0, false},
		"many were lost":            {cached, 9, 4, 0, 5, 4, 0, false},
		"a cached tuple was queued": {cached, 9, 9, 0, 0, 9, 1, false},
		"some were never queued":    {fresh, 9, 9, 0, 0, 9, 8, false},
		"all were refused":          {denied, 9, 0, 9, 0, 0, 9, true},
		"a denied one got through":  {denied, 9, 0, 9, 0, 1, 9, false},
		"a denied one was accepted": {denied, 9, 1, 8, 0, 0, 9, false},
	} {
		r := load.Result{Begun: c.begun, Accepted: c.accepted, Refused: c.refused, TimedOut: c.lost}
		err := c.entry.check(&r, &load.Result{Accepted: c.saw}, uint64(c.asked))
		if fine := err == nil; fine != c.fine || err != nil && !errors.Is(err, errUnbelievable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestQuartiles(t *testing.T) {
	low, median, high := quartiles([]float64{5, 1, 3, 2, 4})
	if got := []float64{low, median, high}; !slices.Equal(got, []float64{2, 3, 4}) {
		t.Errorf("quartiles are %v", got)
	}
	if _, median, _ := quartiles([]float64{1, 2}); median != 1.5 {
		t.Errorf("the median of 1 and 2 is %v", median)
	}
}
