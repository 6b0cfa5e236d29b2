// Package plan is what the two sides of a test machine say to each other: what to run goes into the guest as a file,
// what becomes of it comes out over a serial line.
package plan

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Paths in the guest.
const (
	// File is the Plan, as JSON.
	File = "/vm/plan.json"
	// Modules is the folder of kernel modules, and Index the kmod.Index of them, as JSON.
	Modules, Index = "/vm/modules", "/vm/modules.json"
	// Agent is the firstpacket binary.
	Agent = "/usr/bin/firstpacket"
	// Line is the serial line for Events; the other one is the kernel's console.
	Line = "/dev/ttyS1"
)

// Plan is what to run in the guest.
type Plan struct {
	Steps []Step `json:"steps"`
}

// Step is the tests of one package.
type Step struct {
	// Package is its folder in the module.
	Package string `json:"package"`
	// Binary is made by go test -c and runs with Args in Dir.
	Binary string   `json:"binary"`
	Args   []string `json:"args"`
	Dir    string   `json:"dir"`
}

// Kind says what happened.
type Kind string

// What can happen, in this order; the middle three once for each step.
const (
	Booted  Kind = "booted"
	Started Kind = "started"
	Output  Kind = "output"
	Ended   Kind = "ended"
	Done    Kind = "done"
)

// Event is one line of the serial line.
type Event struct {
	Kind    Kind   `json:"kind"`
	Package string `json:"package,omitempty"`
	// Text is the kernel's release (Booted), one line of output (Output), or why something could not be done at all
	// (Ended, Done).
	Text string `json:"text,omitempty"`
	// OK is how the step ended, or all of them (Done).
	OK      bool          `json:"ok,omitempty"`
	Elapsed time.Duration `json:"elapsed,omitempty"` // in nanoseconds
}

// Send writes the event as one line.
func Send(w io.Writer, e Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}

// Parse reads a line that Send wrote; ok is false for any other.
func Parse(line []byte) (e Event, ok bool) {
	if err := json.Unmarshal(line, &e); err != nil || e.Kind == "" {
		return Event{}, false
	}
	return e, true
}
