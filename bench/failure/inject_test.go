package failure

import (
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// patch writes code into a running process, as debuggers do: the kernel gives it its own copy of the page.
func patch(pid int, at uint64, code []byte) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	_, err = memory.WriteAt(code, int64(at))
	return err
}

// functions reads the addresses of a Go program's functions.
func functions(program string) (*gosym.Table, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table, err := f.Section(".gopclntab").Data()
	if err != nil {
		return nil, err
	}
	return gosym.NewTable(nil, gosym.NewLineTable(table, f.Section(".text").Addr))
}

// nilDereference reads from address 0: Go makes a panic of it, of the goroutine that runs the code.
func nilDereference() []byte {
	switch runtime.GOARCH {
	case "amd64":
		return []byte{0x31, 0xc0, 0x8b, 0x00} // xor eax, eax; mov eax, [rax]
	case "arm64":
		return []byte{0x1f, 0x00, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0x00, 0x00, 0x40, 0xf9} // mov x0, 0; ldr x0, [x0]
	}
	panic("no code for " + runtime.GOARCH)
}

// TestPanic has each goroutine of the agent dereference a nil pointer. The process ends at once and says why, nothing
// is cleaned up, and the rules stay.
func TestPanic(t *testing.T) {
	b := newBed(t)
	symbols, err := functions(b.binary)
	b.must(err)
	const module = "github.com/firstpacket/firstpacket/"
	b.apply(admitting("friend"))
	held := b.flow("friend", "server", probe.TCP, false)
	for i, where := range []struct{ goroutine, function string }{
		{"queue thread", "proxy/queue.(*Queue).serve"},
		{"controller", "proxy/agent.(*controller).step"},
		{"settler", "proxy/agent.(*settler).evict"},
		{"guard", "proxy/agent.(*controller).checkOwner"},
		{"watcher of the table", "proxy/ruleset.ofTable"},
		{"flow log", "proxy/flowlog.(*table).expire"},
		{"manifests", "classify/source/manifests.(*loader).load"},
	} {
		t.Run(where.goroutine, func(t *testing.T) {
			f := symbols.LookupFunc(module + where.function)
			if f == nil {
				t.Fatalf("the program has no function %s", where.function)
			}
			a := b.agent()
			b.must(patch(a.PID(), f.Entry, nilDereference()))
			ctx, cancel := b.ctx()
			defer cancel()
			// Something for each of them to do.
			b.must(b.ApplyYAML(ctx, policyFor(fmt.Sprintf("other-%d", i), "bystander", "friend")))
			b.denied("client", "server")
			eventually(t, "the agent ends", func() bool { return !a.Running() })
			var exit *exec.ExitError
			if err := a.Ended(); !errors.As(err, &exit) || exit.ExitCode() != 2 { // the Go runtime's
				t.Errorf("ended with %v, want status 2", err)
			}
			if lines := strings.Join(a.Output().Lines(), "\n"); !strings.Contains(lines, where.function) {
				t.Errorf("the trace does not tell of %s", where.function)
			}
			if r := held.Exchange(); r.Outcome != probe.Reached {
				t.Errorf("established flow: %v", r)
			}
			b.denied("client", "server")
			b.must(b.Start(ctx, "one"))
			b.reaches("friend", "server")
			b.denied("client", "server")
		})
	}
	b.asBefore()
}
