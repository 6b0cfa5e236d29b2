package failure

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/established"
)

// simulated is what the command says on the node of the bed about a change.
func (b *bed) simulated(change string) (flows []established.Change) {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "change.yaml")
	b.must(os.WriteFile(file, []byte(change), 0o600))
	node, err := b.Place("node/one")
	b.must(err)
	ctx, cancel := b.ctx()
	defer cancel()
	var out []byte
	err = node.NS.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, b.binary, "simulate", "--manifests", b.Dir(), "-f", file, "--flows",
			"--exit-code", "-o", "json").Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() != 3 {
		b.t.Fatalf("%v: %s", err, exit.Stderr)
	}
	var answer struct {
		Flows  []established.Change
		Looked int
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.Looked == 0 {
		b.t.Fatalf("%v, %d flows looked at: %s", err, answer.Looked, out)
	}
	return answer.Flows
}

// TestSimulateFlows asks what would become of established flows, and then has it become.
func TestSimulateFlows(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend", "client"))
	kept := b.flow("friend", "server", probe.TCP, false)
	cut := b.flow("client", "server", probe.TCP, false)
	free := b.flow("client", "bystander", probe.UDP, false) // of which no policy is known, so that it has no mark
	cut.Wait, free.Wait = probe.DefaultWait, probe.DefaultWait

	if flows := b.simulated(admitting("friend", "client")); len(flows) != 0 {
		t.Errorf("what is there already would change %+v", flows)
	}
	narrower := admitting("friend") + "\n---\n" + policyFor("bystander", "bystander")
	flows := b.simulated(narrower)
	if len(flows) != 2 {
		t.Fatalf("%+v, want two flows", flows)
	}
	for i, want := range []struct {
		flow          *probe.Flow
		proto, to, by string
	}{
		{cut, "TCP", "default/server", "NetworkPolicy/default/server"},
		{free, "UDP", "default/bystander", "NetworkPolicy/default/bystander"},
	} {
		var found *established.Change
		for j := range flows {
			if flows[j].Src.Addr == want.flow.Local() && flows[j].Proto == want.proto {
				found = &flows[j]
			}
		}
		if found == nil || !found.Cut || found.Src.Name != "default/client" || found.Dst.Name != want.to ||
			len(found.Policies) != 1 || found.Policies[0] != want.by {
			t.Errorf("flow %d: %+v of %+v", i, found, flows)
		}
	}
	for _, f := range []*probe.Flow{kept, cut, free} {
		if r := f.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("simulating cut a flow: %v", r)
		}
	}

	b.apply(narrower)
	for f, denied := range map[*probe.Flow]bool{kept: false, cut: true, free: true} {
		if r := f.Exchange(); r.Denied() != denied {
			t.Errorf("%v: %v, want denied %v", f.Local(), r, denied)
		}
	}
	flows = b.simulated(admitting("client"))
	if len(flows) != 2 {
		t.Fatalf("%+v, want two flows", flows)
	}
	for _, f := range flows {
		if want := f.Src.Addr == kept.Local(); f.Cut != want {
			t.Errorf("%+v, want cut %v", f, want)
		}
	}
}
