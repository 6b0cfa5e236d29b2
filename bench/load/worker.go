package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// Roles of a worker process, as its only argument.
const (
	RoleClient = "client"
	RoleServer = "server"
)

// threads is how many threads a worker's Go code may use at once: clients that wait in the kernel hold theirs for a
// moment.
const threads = 16

// litter is after how many connections a worker collects its garbage.
const litter = 1000

// Serve is the main function of a worker process. It does jobs from in until that ends.
func Serve(role string, in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(threads)
	debug.SetGCPercent(-1) // between jobs only
	do := new(clients).do
	switch role {
	case RoleClient:
	case RoleServer:
		s, err := newServer()
		if err != nil {
			return err
		}
		defer func() { _ = s.close() }()
		do = s.do
	default:
		return fmt.Errorf("no worker of role %q", role)
	}
	answers, made := json.NewEncoder(out), 0
	for jobs := json.NewDecoder(in); ; {
		var job Job
		switch err := jobs.Decode(&job); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read a job: %w", err)
		}
		r := do(job)
		if made += max(r.Begun, r.Accepted); made >= litter { // before the answer, which lets somebody else have a turn
			runtime.GC()
			made = 0
		}
		if err := answers.Encode(r); err != nil {
			return fmt.Errorf("answer a job: %w", err)
		}
	}
}

// Worker is a process that makes or takes load. It is for one goroutine.
type Worker struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
}

// Start runs command, whose main function calls Serve with the role, inside the namespace.
func Start(starter *ns.Starter, n *ns.Namespace, command []string, role string) (*Worker, error) {
	w := &Worker{name: role + " of " + n.Name(), cmd: exec.Command(command[0], append(command[1:], role)...)}
	w.cmd.Stderr = os.Stderr
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", w.name, err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", w.name, err)
	}
	if err := starter.Start(n, w.cmd); err != nil {
		return nil, err
	}
	w.in, w.out = in, json.NewDecoder(bufio.NewReader(out))
	return w, nil
}

// Do has one job done and waits for it. Every job ends by itself: it is bounded by its duration or its limit, and each
// wait in it has a timeout.
func (w *Worker) Do(job Job) (Result, error) {
	var r Result
	if err := json.NewEncoder(w.in).Encode(job); err != nil {
		return r, fmt.Errorf("the %s is gone: %w", w.name, err)
	}
	if err := w.out.Decode(&r); err != nil {
		return r, fmt.Errorf("no answer from the %s: %w", w.name, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("the %s: %s", w.name, r.Error)
	}
	return r, nil
}

// Close ends the process and waits for it.
func (w *Worker) Close() error {
	err := w.in.Close()
	if end := w.cmd.Wait(); end != nil {
		return fmt.Errorf("end the %s: %w", w.name, errors.Join(err, end))
	}
	return nil
}
