package failure

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// wallClock moves the wall clock of one running process, and of nothing else on the machine. A process reads its clocks
// by a function that the kernel maps into it (vdso(7)). That is replaced by the system call of the same name, and by an
// offset to what it gives for CLOCK_REALTIME.
type wallClock struct {
	pid    int
	offset uint64 // address of the offset, in seconds
}

// newWallClock replaces the function. Its first bytes become a jump to the end of the mapping, which is not used.
func newWallClock(pid int) (*wallClock, error) {
	start, image, err := vdso(pid)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	entry := uint64(0)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			entry = s.Value
		}
	}
	code := []byte{
		0xb8, unix.SYS_CLOCK_GETTIME, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 0x0d, // jne to the ret: not CLOCK_REALTIME
		0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0, // mov rcx, offset
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3, // ret
	}
	const offsetIn = 13
	at := uint64(len(image) - len(code))
	if entry == 0 || len(bytes.Trim(image[at:], "\x00")) > 0 {
		return nil, errors.New("the vDSO is not as it is expected to be")
	}
	jump := append([]byte{0xe9}, binary.LittleEndian.AppendUint32(nil, uint32(at-entry-5))...) // jmp rel32
	if err := patch(pid, start+at, code); err != nil {
		return nil, err
	}
	return &wallClock{pid, start + at + offsetIn}, whileStopped(pid, start+entry, len(jump), func() error {
		return patch(pid, start+entry, jump)
	})
}

// jump sets the clock to the true time and so much more.
func (w *wallClock) jump(by time.Duration) error {
	return patch(w.pid, w.offset, binary.LittleEndian.AppendUint64(nil, uint64(int64(by/time.Second))))
}

// vdso returns the kernel's code in a process and where it is.
func vdso(pid int) (start uint64, image []byte, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, "[vdso]") {
			continue
		}
		var end uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return 0, nil, err
		}
		memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return 0, nil, err
		}
		defer memory.Close()
		image, err = io.ReadAll(io.NewSectionReader(memory, int64(start), int64(end-start)))
		return start, image, err
	}
	return 0, nil, errors.New("no vDSO")
}

// whileStopped stops the process at a moment at which no thread runs the code at the address.
func whileStopped(pid int, at uint64, size int, do func() error) error {
	for range 100 {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return err
		}
		free, err := elsewhere(pid, at, size)
		if err == nil && free {
			err = do()
		}
		if err := errors.Join(err, unix.Kill(pid, unix.SIGCONT)); err != nil || free {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("a thread never leaves the code")
}

// elsewhere tells whether all threads of a process have stopped outside of the code.
func elsewhere(pid int, at uint64, size int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return false, err
		}
		// The last field is the program counter; "running" stands for a thread that has not stopped yet (proc(5)).
		fields := strings.Fields(string(text))
		if len(fields) < 2 {
			return false, nil
		}
		pc, err := strconv.ParseUint(fields[len(fields)-1], 0, 64)
		if err != nil {
			return false, err
		}
		if pc >= at && pc < at+uint64(size) {
			return false, nil
		}
	}
	return true, nil
}

// TestClockJumps: the agent's wall clock goes ten years ahead, and back to before Unix. Nothing but the times in the
// log is touched by it: neither what is held and for how long, nor what is enforced.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	d := newDelayed(t, "--hold-time", "10s")
	ctx, cancel := d.ctx()
	defer cancel()
	d.must(d.ApplyYAML(ctx, admitting("friend")))
	d.tell()
	d.must(d.WaitApplied(ctx))
	held := d.flow("friend", "server", probe.TCP, false)
	clock, err := newWallClock(d.agent().PID())
	d.must(err)
	port := uint16(1000)
	const year = 365 * 24 * time.Hour
	for i, by := range []time.Duration{10 * year, -60 * year, time.Hour, 0} {
		name := fmt.Sprint("new-", i)
		d.must(d.ApplyYAML(ctx, d.pod(name, "friend")))
		r := make(chan probe.Result, 1)
		go func() { r <- d.probe(name, "server", probe.TCP, 900*time.Millisecond) }() // before its SYN is sent again
		eventually(t, "a packet is held", func() bool { return d.metrics().Sum("firstpacket_queue_held_packets") > 0 })
		d.must(clock.jump(by))
		d.tell()
		if r := <-r; r.Outcome != probe.Reached {
			t.Errorf("clock off by %v: a connection that was held: %v", by, r)
		}
		d.denied("client", "server")
		eventually(t, fmt.Sprintf("a line of the log has a time off by %v", by), func() bool {
			// Each to another port: repeats of a denied flow are told of in a line every ten seconds.
			port++
			_, err := d.Probe(ctx, probe.Probe{
				From: d.place("client").NS, To: d.place("server").At(false, port), Proto: probe.TCP, Wait: time.Millisecond,
			})
			d.must(err)
			for _, record := range d.agent().Output().Records() {
				if off := time.Until(record.Time) - by; off > -time.Minute && off < time.Minute {
					return true
				}
			}
			return false
		})
		if r := held.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("clock off by %v: established flow: %v", by, r)
		}
		d.reaches("friend", "server")
		// Policy goes on to be followed, and flows to be cut.
		for _, p := range []struct{ in, out string }{{"client", "friend"}, {"friend", "client"}} {
			d.must(d.ApplyYAML(ctx, admitting(p.in)))
			d.tell()
			d.must(d.WaitApplied(ctx))
			d.reaches(p.in, "server")
			d.denied(p.out, "server")
		}
	}
}
