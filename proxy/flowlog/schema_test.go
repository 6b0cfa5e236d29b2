package flowlog

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/firstpacket/firstpacket/policycache/engine"
)

// word is a reason that is not the engine's.
type word string

func (w word) String() string { return string(w) }

// TestSchema holds lines of every kind to the schema in docs, and the schema to lines that are none.
func TestSchema(t *testing.T) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := c.Compile(filepath.Join("..", "..", "docs", "flow-log.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(line string) error {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			return err
		}
		return schema.Validate(v)
	}

	var out bytes.Buffer
	l, err := New(Config{Output: &out, Node: "node-a", LinesPerSecond: 10000})
	if err != nil {
		t.Fatal(err)
	}
	reasons := []fmt.Stringer{word("revoked")}
	for r := range engine.Reasons {
		reasons = append(reasons, r)
	}
	put := 0
	for _, reason := range reasons {
		for _, verdict := range []fmt.Stringer{
			engine.Deny, engine.Hypothetical(engine.Deny), engine.Hypothetical(engine.Allow),
		} {
			for _, direction := range []engine.Direction{engine.NoDirection, engine.Ingress, engine.Egress} {
				r := refused(40000, 80)
				r.Verdict, r.Direction, r.Reason = verdict, direction, reason
				r.Policies = &names{[]string{"NetworkPolicy/shop/db", "ClusterNetworkPolicy/ops", "NetworkPolicy.v1beta1/a/b"}}
				r.Proto = []uint8{1, 6, 17, 58, 132, 47, 255}[put%7]
				if put%3 == 0 {
					r.Src = netip.MustParseAddrPort("[2001:db8::1]:0")
					r.SrcEndpoint, r.Policies = lan, nil
				}
				l.Ring(0).Put(&r)
				put++
			}
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(out.String()) {
		lines++
		if err := check(line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if lines != put {
		t.Errorf("%d lines, want %d", lines, put)
	}

	good, _, _ := strings.Cut(out.String(), "\n")
	for old, other := range map[string]string{
		`"node":"node-a"`: `"node":""`, `"count":1`: `"count":0`, `"ip":"10.244.2.7"`: `"ip":"here"`,
		`"time":"20`: `"time":"x`, `"verdict":"deny"`: `"verdict":"no"`, `"proto":`: `"protocol":`,
	} {
		bad := strings.Replace(good, old, other, 1)
		if bad == good || check(bad) == nil {
			t.Errorf("the schema takes %s", bad)
		}
	}
}
