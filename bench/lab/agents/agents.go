// Package agents runs one firstpacket agent for each node of a lab, inside the node's namespace, and talks to it.
package agents

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// address is where every agent serves its endpoints: each node has a loopback interface of its own.
const address = "127.0.0.1:9099"

// pause is the time between two questions to an agent that is waited for.
const pause = 10 * time.Millisecond

// Config says how an agent is run.
type Config struct {
	// Binary is the program; it is run as "Binary agent ...".
	Binary string
	// Args are added to the arguments that name the node, the source and the endpoints.
	Args []string
	Node string
	// Manifests is the directory the agent reads. Empty leaves the source to Args (--kubeconfig).
	Manifests string
	// Sockets is a directory in which the agent also serves its endpoints, on a unix socket NODE.sock; empty is none.
	Sockets   string
	Namespace *ns.Namespace
	Starter   *ns.Starter
	// Env is added to the environment of this process.
	Env []string
}

// Agent is the agent of one node; the process may come and go. Its methods are for one goroutine, but for those of
// Output and Wait... functions, which may be called by any.
type Agent struct {
	cfg    Config
	client *http.Client
	output *Output
	// cmd is the process that runs, nil while none does; ended carries how it ended and is closed then.
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// New prepares an agent without starting it.
func New(cfg Config) *Agent {
	dial := func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = cfg.Namespace.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true}
	return &Agent{cfg: cfg, client: &http.Client{Transport: transport, Timeout: 5 * time.Second}, output: &Output{}}
}

// Output is what the agent has said so far, over all its lives.
func (a *Agent) Output() *Output { return a.output }

// Start starts the process; one that runs already is an error. It does not wait for the agent to be ready.
func (a *Agent) Start() error {
	if a.Running() {
		return fmt.Errorf("agent of %s: runs already", a.cfg.Node)
	}
	serve := address
	if a.cfg.Sockets != "" {
		serve += ",unix:" + filepath.Join(a.cfg.Sockets, a.cfg.Node+".sock")
	}
	args := []string{"agent", "--node-name", a.cfg.Node, "--http-address", serve, "--flow-log", "-"}
	if a.cfg.Manifests != "" {
		args = append(args, "--manifests", a.cfg.Manifests)
	}
	cmd := exec.Command(a.cfg.Binary, append(args, a.cfg.Args...)...)
	cmd.Env = append(os.Environ(), a.cfg.Env...)
	cmd.Stdout, cmd.Stderr = a.output.stream(true), a.output.stream(false)
	if err := a.cfg.Starter.Start(a.cfg.Namespace, cmd); err != nil {
		return fmt.Errorf("agent of %s: %w", a.cfg.Node, err)
	}
	ended := make(chan struct{})
	a.cmd, a.ended, a.err = cmd, ended, nil
	go func() {
		defer close(ended)
		a.err = cmd.Wait()
	}()
	return nil
}

// Running says whether the process runs.
func (a *Agent) Running() bool {
	if a.ended == nil {
		return false
	}
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

// Ended is how the last process ended: nil for status 0, and while it runs.
func (a *Agent) Ended() error {
	if a.ended == nil || a.Running() {
		return nil
	}
	return a.err
}

// PID is the number of the running process, 0 if there is none.
func (a *Agent) PID() int {
	if !a.Running() {
		return 0
	}
	return a.cmd.Process.Pid
}

// Kill ends the process with SIGKILL and waits for its end. There may be none.
func (a *Agent) Kill() { _ = a.end(context.Background(), unix.SIGKILL) }

// Stop ends the process with SIGTERM and returns how it ended. One that has not ended when ctx does is killed.
func (a *Agent) Stop(ctx context.Context) error { return a.end(ctx, unix.SIGTERM) }

func (a *Agent) end(ctx context.Context, signal os.Signal) error {
	if !a.Running() {
		return nil
	}
	if err := a.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("agent of %s: %w", a.cfg.Node, err)
	}
	select {
	case <-a.ended:
	case <-ctx.Done():
		_ = a.cmd.Process.Kill()
		<-a.ended
		return fmt.Errorf("agent of %s: did not end in time: %w", a.cfg.Node, ctx.Err())
	}
	if a.err != nil && signal != unix.SIGKILL {
		return fmt.Errorf("agent of %s: %w; it said last: %s", a.cfg.Node, a.err, a.output.last())
	}
	return nil
}

// Status is the answer of /status, as far as the lab is concerned.
type Status struct {
	Node       string            `json:"node"`
	Generation uint64            `json:"generation"`
	Applied    map[string]string `json:"applied"`
	// Manifests is the digest of the directory content that is in force.
	Manifests string `json:"manifests"`
}

// Status asks the agent for its state.
func (a *Agent) Status(ctx context.Context) (Status, error) {
	var s Status
	body, err := a.Get(ctx, "/status")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("agent of %s: /status: %w", a.cfg.Node, err)
	}
	return s, nil
}

// Metrics reads /metrics.
func (a *Agent) Metrics(ctx context.Context) (Metrics, error) {
	body, err := a.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(body), nil
}

// Get reads one of the agent's endpoints; another status than 200 is an error.
func (a *Agent) Get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", a.cfg.Node, err)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", a.cfg.Node, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %s: %w", a.cfg.Node, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("agent of %s: %s: %s: %s", a.cfg.Node, path, response.Status,
			strings.TrimSpace(string(body)))
	}
	return body, nil
}

// WaitReady waits until /readyz says that the agent enforces.
func (a *Agent) WaitReady(ctx context.Context) error {
	return a.wait(ctx, func() error {
		_, err := a.Get(ctx, "/readyz")
		return err
	})
}

// WaitApplied waits until the directory content with that digest is in force.
func (a *Agent) WaitApplied(ctx context.Context, digest string) error {
	return a.wait(ctx, func() error {
		s, err := a.Status(ctx)
		if err == nil && s.Manifests != digest {
			err = fmt.Errorf("agent of %s: has the manifests %.12q in force, not %.12q", a.cfg.Node, s.Manifests, digest)
		}
		return err
	})
}

// wait asks again until ask has no objection. The end of the process or of ctx ends the waiting.
func (a *Agent) wait(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-a.ended:
			return fmt.Errorf("agent of %s ended: %w; it said last: %s", a.cfg.Node, a.err, a.output.last())
		case <-ctx.Done():
			return fmt.Errorf("%w: %w; it said last: %s", ctx.Err(), err, a.output.last())
		}
	}
}
