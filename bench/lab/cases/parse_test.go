package cases

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// Parse makes a case of a text for tests.
func Parse(name, content string) (*Case, error) { return parse(name, content) }

func TestEveryCaseIsInOrder(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	const promised = 150
	if len(all) < promised {
		t.Errorf("%d cases, want at least %d", len(all), promised)
	}
	texts := make(map[string]string)
	for _, c := range all {
		if other, ok := texts[c.Text]; ok {
			t.Errorf("%s and %s show the same: %s", c.Name, other, c.Text)
		}
		texts[c.Text] = c.Name
	}
}

func TestFind(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  func(n int) bool
	}{
		{nil, func(n int) bool { return n >= 150 }},
		{[]string{"default/deny-ingress"}, func(n int) bool { return n == 1 }},
		{[]string{"default", "ports/named"}, func(n int) bool { return n > 5 && n < 50 }},
	} {
		found, err := Find(test.names...)
		if err != nil || !test.want(len(found)) {
			t.Errorf("%v: %d cases, %v", test.names, len(found), err)
		}
	}
	if _, err := Find("default/no-such-case"); err == nil {
		t.Error("an unknown name is no error")
	}
}

func TestClaims(t *testing.T) {
	const text = `What is tested.

-- expect --
deny * -> x/*              # comment
allow w/a,node/own -> x/a 80 53/UDP
deny v6 w/a -> x/a 80
`
	c, err := parse("topic/name", text)
	if err != nil {
		t.Fatal(err)
	}
	claims := c.steps[0].claims
	one, two := end{name: "node/one", node: "one"}, end{name: "node/two", node: "two"}
	xa, wa, zb := end{name: "x/a", node: "one"}, end{name: "w/a", node: "two"}, end{name: "z/b", node: "two"}
	tcp80, udp53, tcp53 := portClaim{80, probe.TCP}, portClaim{53, probe.UDP}, portClaim{53, probe.TCP}
	for _, test := range []struct {
		question
		want bool
		by   int
	}{
		{question{zb, xa, tcp80, false}, false, 0},
		{question{wa, xa, tcp80, false}, true, 1},
		{question{wa, xa, tcp80, true}, false, 2},
		{question{wa, xa, udp53, true}, true, 1},
		{question{wa, xa, tcp53, false}, false, 0},
		{question{one, xa, tcp80, false}, true, 1},
		{question{one, xa, tcp53, false}, true, -1}, // "*" is no node
		{question{two, xa, tcp80, false}, true, -1},
		{question{xa, wa, tcp80, false}, true, -1},
		{question{end{name: "outside/world"}, xa, tcp80, false}, false, 0},
	} {
		if allow, by := verdict(claims, test.question); allow != test.want || by != test.by {
			t.Errorf("%s: %t by %d, want %t by %d", test.question, allow, by, test.want, test.by)
		}
	}
}

func TestSections(t *testing.T) {
	const text = `Text of
two lines.

-- label --
pod x/a role=web tier- empty=
-- delete --
networkpolicy x/deny
namespace w
-- expect on two nodes --
`
	c, err := parse("topic/name", text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Text != "Text of\ntwo lines." || c.Topic() != "topic" {
		t.Errorf("text %q of topic %q", c.Text, c.Topic())
	}
	label := c.steps[0].labels[0]
	diff := cmp.Diff(map[string]string{"role": "web", "empty": ""}, label.set)
	if diff != "" || !slices.Equal(label.remove, []string{"tier"}) {
		t.Errorf("labels %v, %s", label.remove, diff)
	}
	if got := c.steps[1].deletes[0].String() + " " + c.steps[1].deletes[1].String(); got !=
		"NetworkPolicy.networking.k8s.io/x/deny Namespace/w" {
		t.Errorf("deletes %s", got)
	}
	if last := c.steps[2]; !last.expects || last.nodes != 2 || len(last.claims) != 0 {
		t.Errorf("last step %+v", last)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"-- expect --\n":         "begin with a sentence",
		"text":                   "expects nothing",
		"text\n-- expected --\n": `line 3: unknown section "expected"`,
		"text\n-- expect --\n\nrefuse * -> x/a\n":             `line 4: "refuse" is neither`,
		"text\n-- expect --\ndeny * x/a\n":                    "want: allow|deny",
		"text\n-- expect --\ndeny * -> x/a http\n":            `port "http"`,
		"text\n-- expect --\ndeny * -> x/a 5/ICMP\n":          "unknown protocol",
		"text\n-- expect --\ndeny [ -> x/a\n":                 "syntax error in pattern",
		"text\n-- delete --\ncronjob x/a\n-- expect --\n":     `unknown kind "cronjob"`,
		"text\n-- delete --\npod a\n-- expect --\n":           `"a" is no name of a pod`,
		"text\n-- label --\npod x/a web\n-- expect --\n":      `"web" neither sets`,
		"text\n-- apply --\nkind: Pod\n-- expect --\n":        "apiVersion and kind must be set",
		"text\n-- apply --\n" + misspelt + "\n-- expect --\n": `unknown field "spec.podselector"`,
	} {
		if _, err := parse("topic/name", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

const misspelt = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: a},
spec: {podselector: {}}}`
