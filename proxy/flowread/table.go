package flowread

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// NewJSON makes a sink that writes lines as they were.
func NewJSON(w io.Writer) Sink { return jsonSink{w} }

type jsonSink struct{ w io.Writer }

func (s jsonSink) Record(line []byte, _ *Record) error {
	if _, err := fmt.Fprintf(s.w, "%s\n", line); err != nil {
		return fmt.Errorf("writing flows: %w", err)
	}
	return nil
}

// NewTable makes a sink that writes a line of columns for each record, with times in the zone, and a line of headings
// before the first. Columns are as wide as is usual: what is wider pushes the rest of its line.
func NewTable(w io.Writer, style term.Style, zone *time.Location) Sink {
	return &tableSink{w: w, Style: style, zone: zone}
}

type tableSink struct {
	term.Style
	w      io.Writer
	zone   *time.Location
	headed bool
}

const columns = "%-19s  %s  %-7s  %-40s  %-40s  %5s  %-18s  %s\n"

func (s *tableSink) Record(_ []byte, r *Record) error {
	var b strings.Builder
	if !s.headed {
		s.headed = true
		fmt.Fprintf(&b, columns, "TIME", "VERDICT", "DIR", "FROM", "TO", "COUNT", "REASON", "POLICIES")
	}
	verdict := fmt.Sprintf("%-7s", printable(r.Verdict))
	if r.Verdict == "deny" {
		verdict = s.Bad(verdict)
	}
	fmt.Fprintf(&b, columns, r.Time.In(s.zone).Format(time.DateTime), verdict, printable(r.Direction), r.Src.name(),
		r.Dst.name()+r.port(), fmt.Sprint(r.Count), printable(r.Reason), printable(strings.Join(r.Policies, " ")))
	if _, err := io.WriteString(s.w, b.String()); err != nil {
		return fmt.Errorf("writing flows: %w", err)
	}
	return nil
}

// name is namespace/pod where the address has one.
func (s *Side) name() string {
	if s.Pod != "" {
		return printable(s.Namespace + "/" + s.Pod)
	}
	return s.IP.String()
}

// port is the port that was asked for, with its protocol.
func (r *Record) port() string {
	proto := printable(strings.ToUpper(r.Proto))
	if r.Dst.Port == 0 {
		return " " + proto
	}
	return fmt.Sprintf(" %d/%s", r.Dst.Port, proto)
}

// printable keeps what a file says from giving orders to a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}
