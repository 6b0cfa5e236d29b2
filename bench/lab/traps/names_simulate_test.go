package traps

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/proxy/established"
)

// simulated is what the command says on node one about the flows there, if the change was applied.
func (b *namesBed) simulated(change string) (cut, back []netip.AddrPort) {
	b.Helper()
	path, err := binary.Path()
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "change.yaml")
	if err := os.WriteFile(file, []byte(change), 0o600); err != nil {
		b.Fatal(err)
	}
	var out []byte
	err = b.place("node/one").NS.Do(func() (err error) {
		out, err = exec.CommandContext(b.Context(), path, "simulate", "--manifests", b.lab.Dir(), "-f", file, "--flows",
			"-o", "json").Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		b.Fatalf("%v: %s", err, exit.Stderr)
	}
	var answer struct{ Flows []established.Change }
	if err := json.Unmarshal(out, &answer); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, f := range answer.Flows {
		if f.Cut {
			cut = append(cut, f.Dst.Addr)
		} else {
			back = append(back, f.Dst.Addr)
		}
	}
	return cut, back
}

// TestSimulateNames: what would become of flows that are open under names, and then has it become.
func TestSimulateNames(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "two", lab.Options{})
	b.server.Set(zone()...)
	b.asks("client", "www.example.com", false, false)
	b.asks("client", "exact.org", false, true)
	held, other := b.open("client", worldAt(false)), b.open("client", worldAt(true))

	expect := func(what, change string, wantCut, wantBack int) {
		t.Helper()
		cut, back := b.simulated(change)
		if len(cut) != wantCut || len(back) != wantBack {
			t.Fatalf("%s: %v would be cut and %v go on, want %d and %d", what, cut, back, wantCut, wantBack)
		}
		for _, a := range append(cut, back...) {
			if a != worldAt(false) {
				t.Errorf("%s: %v", what, a)
			}
		}
	}
	narrow, wider := namesAccepted("exact.org"), namesAccepted("exact.org", "a.example.com", "www.example.com")
	expect("another pattern of the same name", wider, 0, 0)
	expect("no pattern of the name", narrow, 1, 0)
	b.talks(held)
	b.apply(narrow)
	b.isCut(held)
	b.talks(other)
	expect("the name again", wider, 0, 1)
	b.apply(wider)
	b.talks(held)
}
