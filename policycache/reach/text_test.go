package reach

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/term"
)

var (
	tcp  = Span{packet.ProtoTCP, minPort, maxPort}
	udp  = Span{packet.ProtoUDP, minPort, maxPort}
	sctp = Span{packet.ProtoSCTP, minPort, maxPort}
	icmp = Span{Proto: packet.ProtoICMP}
	http = Span{packet.ProtoTCP, 80, 80}
)

// drawn has a cell of every kind, and names that are not harmless everywhere.
func drawn() *Matrix {
	open := []Reach{{tcp, 2}, {udp, 2}, {sctp, 2}, {icmp, 2}}
	return &Matrix{
		Groups: []Group{{Name: "=a"}, {Name: "<b>"}},
		Cells: [][]Cell{
			{{}, {Pairs: 2, Reach: open}},
			{{Pairs: 2}, {Pairs: 2, Reach: []Reach{{http, 2}, {udp, 1}}}},
		},
	}
}

func TestFormats(t *testing.T) {
	m := drawn()
	var text, coloured, sheet, page, js strings.Builder
	for _, err := range []error{
		m.WriteText(&text, term.Style{}), m.WriteText(&coloured, term.Style{Colour: true}), m.WriteCSV(&sheet),
		m.WriteHTML(&page), m.WriteJSON(&js),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	table, _, _ := strings.Cut(text.String(), "\n\n")
	if d := cmp.Diff("FROM \\ TO  =a  <b>\n=a         .   all\n<b>        -   80/TCP, UDP (1 of 2)", table); d != "" {
		t.Error(d)
	}
	for _, want := range []string{"\x1b[32mall\x1b[0m", "\x1b[31m-\x1b[0m", "\x1b[33m80/TCP, UDP (1 of 2)\x1b[0m"} {
		if !strings.Contains(coloured.String(), want) {
			t.Errorf("%q lacks %q", coloured.String(), want)
		}
	}
	if d := cmp.Diff("from,to,ports,allowed,pairs\n'=a,<b>,TCP,2,2\n'=a,<b>,UDP,2,2\n'=a,<b>,SCTP,2,2\n'=a,<b>,ICMP,2,2\n"+
		"<b>,'=a,,0,2\n<b>,<b>,80/TCP,2,2\n<b>,<b>,UDP,1,2\n", sheet.String()); d != "" {
		t.Error(d)
	}
	if s := page.String(); strings.Contains(s, "<b>") || !strings.Contains(s, `<td class="whole">all</td>`) ||
		!strings.Contains(s, `<td class="none">-</td>`) || strings.Contains(s, "http") {
		t.Error(s)
	}
	var got struct {
		Cells [][]struct {
			Pairs int
			Reach []struct {
				Ports   string
				Allowed int
			}
		}
	}
	if err := json.Unmarshal([]byte(js.String()), &got); err != nil || got.Cells[1][1].Reach[1].Ports != "UDP" {
		t.Errorf("%v %+v", err, got)
	}
}

func TestSpans(t *testing.T) {
	for text, want := range map[string]Span{
		"80": http, "80/tcp": http, "53/UDP": {packet.ProtoUDP, 53, 53}, "9/SCTP": {packet.ProtoSCTP, 9, 9}, "icmp": icmp,
	} {
		if got, err := ParseSpan(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "x", "80/GRE", "80-90/TCP", "/TCP"} {
		if got, err := ParseSpan(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestAskedPortsAreAll(t *testing.T) {
	m := &Matrix{Ports: []Span{http, {packet.ProtoTCP, 81, 81}}}
	c := Cell{Pairs: 1, Reach: []Reach{{Span{packet.ProtoTCP, 80, 81}, 1}}}
	if got := m.words(&c); got != "all" {
		t.Errorf("both of two neighbours are %q", got)
	}
	c.Reach[0].Ports = http
	if got := m.words(&c); got != "80/TCP" {
		t.Errorf("one of two is %q", got)
	}
}
