package demo

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/matrix"
)

const (
	// shownRecords is how many lines of the denied-flow log are printed.
	shownRecords = 6
	// logPatience bounds the wait for the first of them, which are written beside the packets' way.
	logPatience = 2 * time.Second
)

// picture probes everything and prints the tables, some of the log, and what it cost.
func picture(ctx context.Context, out *printer, l *lab.Lab) (tables [2]*matrix.Table, err error) {
	before, err := l.Metrics(ctx)
	if err != nil {
		return tables, err
	}
	began := time.Now()
	tables, connections, err := l.Matrix(ctx, options(l))
	if err != nil {
		return tables, err
	}
	took := time.Since(began)
	for _, t := range tables {
		out.table(t)
	}
	out.printf("%d connections tried in %s; denied ones were waited for.\n\n", connections, took.Round(time.Millisecond))

	if len(l.Agents()) == 0 {
		return tables, nil
	}
	if err := printRecords(ctx, out, l, tables); err != nil {
		return tables, err
	}
	first, err := l.Metrics(ctx)
	if err != nil {
		return tables, err
	}
	again, err := repeat(ctx, l)
	if err != nil {
		return tables, err
	}
	second, err := l.Metrics(ctx)
	if err != nil {
		return tables, err
	}
	printCost(out, "each for the first time:", connections, before, first)
	printCost(out, fmt.Sprintf("the allowed ones, %d times more:", rounds), again, first, second)
	out.printf("time from a packet's arrival in userspace to its verdict: %s median, %s p99\n\n",
		latency(second, 0.5), latency(second, 0.99))
	return tables, nil
}

// repeat makes the connections that policy allows again and again.
func repeat(ctx context.Context, l *lab.Lab) (connections int, err error) {
	opts := options(l)
	opts.OnlyAllowed = true
	for range rounds {
		_, n, err := l.Matrix(ctx, opts)
		if err != nil {
			return 0, err
		}
		connections += n
	}
	return connections, nil
}

// printRecords prints some of the denied-flow log, if anything was denied.
func printRecords(ctx context.Context, out *printer, l *lab.Lab, tables [2]*matrix.Table) error {
	denied := 0
	for _, t := range tables {
		denied += t.Cells.Count(matrix.No)
	}
	if denied == 0 {
		return nil
	}
	var records []agents.Record
	for deadline := time.Now().Add(logPatience); len(records) < min(denied, shownRecords) && time.Now().Before(deadline); {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for the denied-flow log: %w", ctx.Err())
		}
		records = l.Denied()
	}
	out.printf("Some of the denied flows, as the agents log them:\n")
	// Spread over the nodes and directions rather than the first few of one.
	step := max(1, len(records)/shownRecords)
	for i := 0; i < len(records) && i/step < shownRecords; i += step {
		out.printf("%s\n", records[i].Line)
	}
	out.printf("\n")
	return nil
}

func printCost(out *printer, what string, connections int, before, after agents.Metrics) {
	const name = "firstpacket_queue_packets_total"
	out.printf("%-36s %6d connections, %5.0f packets went to userspace\n", what, connections,
		after.Sum(name)-before.Sum(name))
}

// latency reads a quantile of all verdicts so far.
func latency(m agents.Metrics, q float64) string {
	seconds := m.Quantile("firstpacket_verdict_seconds", q)
	if math.IsNaN(seconds) {
		return "none"
	}
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Nanosecond).String()
}
