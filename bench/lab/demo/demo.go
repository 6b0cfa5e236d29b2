// Package demo shows a cluster under policy: who reaches whom on real packets, next to what policy says.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/matrix"
	"github.com/firstpacket/firstpacket/bench/lab/shop"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

const (
	// startPatience bounds the wait for agents to enforce, applyPatience the wait for an edit to be in force.
	startPatience = 60 * time.Second
	applyPatience = 10 * time.Second
	// rounds is how often allowed connections are made again, to show what the kernel answers by itself.
	rounds = 20
)

// ErrDiffers says that some connection came to be, or did not, against policy.
var ErrDiffers = errors.New("packets and policy disagree")

// Options say what to show.
type Options struct {
	// AgentBinary is the firstpacket program to run on each node, AgentArgs are added to its arguments. Without a
	// program nothing is enforced.
	AgentBinary string
	AgentArgs   []string
	// Objects are the cluster, Outside the machines beside it; nil Objects are the shop, with its own machines.
	Objects []topology.Object
	Outside []lab.Outside
	// Dir keeps the completed manifests; empty is a temporary directory.
	Dir string
	// Sockets is a directory in which the agents serve their endpoints for 'firstpacket ui'; empty is none.
	Sockets string
	// Bridged joins the pods of a node by a bridge.
	Bridged bool
	// Watch goes on until ctx ends, and shows what changes when the manifests are edited.
	Watch bool
	// Style is how tables are drawn; see matrix.StyleFor.
	Style matrix.Style
}

// Run brings the cluster up, prints what it is like and takes it down again. The error is ErrDiffers if any cell of the
// matrix is not what policy says. The process has called ns.Enter before. The end of ctx is an error only if it comes
// before the first picture is complete.
func Run(ctx context.Context, w io.Writer, opts Options) (err error) {
	if opts.Objects == nil {
		if opts.Objects, err = shop.Objects(); err != nil {
			return err
		}
		opts.Outside = shop.Outside()
	}
	out := &printer{w: w, style: opts.Style}
	began := time.Now()
	l, err := lab.New(ctx, opts.Objects, lab.Options{
		Dir: opts.Dir, Bridged: opts.Bridged, Outside: opts.Outside, AgentBinary: opts.AgentBinary,
		AgentArgs: opts.AgentArgs, Sockets: opts.Sockets,
		Logf: func(format string, args ...any) { out.printf("note: "+format+"\n", args...) },
	})
	if err != nil {
		return fmt.Errorf("bring the cluster up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := inForce(ctx, l, startPatience); err != nil {
		return fmt.Errorf("wait for the agents: %w", err)
	}
	out.printf("%d nodes, %d pods and %d machines outside are up and %d agents enforce after %s\n\n",
		len(l.Nodes()), len(l.Pods()), len(l.Outside()), len(l.Agents()), time.Since(began).Round(time.Millisecond))

	tables, err := picture(ctx, out, l)
	if err != nil {
		return err
	}
	if opts.Watch {
		err = watch(ctx, out, l, tables)
	}
	return errors.Join(err, verdict(out, tables), out.err)
}

// inForce waits until every agent enforces what the directory holds.
func inForce(ctx context.Context, l *lab.Lab, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := l.WaitReady(ctx); err != nil {
		return err
	}
	return l.WaitApplied(ctx)
}

// options cover all pods and machines outside, as sources and as destinations.
func options(l *lab.Lab) lab.MatrixOptions {
	all := append(l.Pods(), l.Outside()...)
	return lab.MatrixOptions{From: all, To: all}
}

// verdict is the last line, and the error if there is one.
func verdict(out *printer, tables [2]*matrix.Table) error {
	cells, wrong := 0, 0
	for _, t := range tables {
		cells += t.Cells.Asked()
		for _, d := range t.Differences() {
			wrong++
			out.printf("DIFFERS: %s: %s -> %s %s: policy says %s, but: %s\n",
				t.Title, d.Row, d.Column.Name, d.Column.Port, d.Cell.Expected, d.Cell.Note)
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%w: %d of %d cells differ", ErrDiffers, wrong, cells)
	}
	out.printf("All %d cells are as policy says.\n", cells)
	return nil
}

// printer remembers the first error of its writer, so that a picture need not be checked line by line.
type printer struct {
	w     io.Writer
	style matrix.Style
	err   error
}

func (p *printer) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); err != nil && p.err == nil {
		p.err = fmt.Errorf("print: %w", err)
	}
}

func (p *printer) table(t *matrix.Table) {
	if err := t.Render(p.w, p.style); err != nil && p.err == nil {
		p.err = err
	}
	p.printf("\n")
}
