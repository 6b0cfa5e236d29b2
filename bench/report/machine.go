package report

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what the numbers depend on.
type Machine struct {
	Processor  string  `json:"processor"`
	Processors int     `json:"processors"`
	MemoryGiB  float64 `json:"memoryGiB"`
	Kernel     string  `json:"kernel"`
	Arch       string  `json:"arch"`
	Go         string  `json:"go"`
	Version    string  `json:"version"`
	// Load is the load average of the last minute, when the run began: what else the machine had to do.
	Load string `json:"load"`
}

// ThisMachine describes the machine that this runs on.
func ThisMachine() (Machine, error) {
	m := Machine{Processors: runtime.NumCPU(), Arch: runtime.GOARCH, Go: runtime.Version(), Version: "unknown"}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("ask for the size of memory: %w", err)
	}
	m.MemoryGiB = float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	m.Processor = "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.Processor = strings.TrimSpace(value)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(b), " ")
	}
	if build, ok := debug.ReadBuildInfo(); ok && build.Main.Version != "" {
		m.Version = build.Main.Version
	}
	return m, nil
}

func (m *Machine) String() string {
	return fmt.Sprintf("%d x %s, %.0f GiB, Linux %s %s, %s, firstpacket %s, load at the start %s",
		m.Processors, m.Processor, m.MemoryGiB, m.Kernel, m.Arch, m.Go, m.Version, m.Load)
}
