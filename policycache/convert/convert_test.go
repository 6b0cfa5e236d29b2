package convert_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstpacket/firstpacket/policycache/convert"
)

var update = flag.Bool("update", false, "write the golden files")

func convertText(t interface{ Fatal(...any) }, in string) string {
	documents, err := convert.Convert(strings.NewReader(in), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := convert.Write(&out, documents); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal(inputs, err)
	}
	for _, name := range inputs {
		t.Run(filepath.Base(name), func(t *testing.T) {
			in, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := convertText(t, string(in))
			golden := strings.TrimSuffix(name, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.HasSuffix(name, "unclear.in.yaml") {
				return // what is left out until it is put right has no equivalent
			}
			if diff := cmp.Diff(matrixOf(t, string(in)), matrixOf(t, got)); diff != "" {
				t.Errorf("the output means something else (-input +output):\n%s", diff)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for in, want := range map[string]string{
		"a: b\n---\n\tx":         "document 2: ",
		"kind: [1]":              "document 1: ",
		"kind: Pod\nmetadata: 1": "document 1: ",
		"kind: AdminNetworkPolicy\napiVersion: policy.networking.k8s.io/v1alpha1\nmetadata: {name: p}\nspec: {priority: " +
			"x}": "document 1 (AdminNetworkPolicy p): ",
	} {
		documents, err := convert.Convert(strings.NewReader(in), convert.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, %v", in, documents, err)
		}
	}
}

// TestNamespaceOption: objects without a namespace get the one that was asked for.
func TestNamespaceOption(t *testing.T) {
	const in = `{kind: NetworkPolicy, metadata: {name: p}, spec: {allowIncoming: {}}}`
	for option, want := range map[string]string{"": "default", "shop": "shop"} {
		documents, err := convert.Convert(strings.NewReader(in), convert.Options{Namespace: option})
		if err != nil || len(documents) != 2 {
			t.Fatal(documents, err)
		}
		for _, d := range documents {
			if got := d.Object["metadata"].(map[string]any)["namespace"]; got != want {
				t.Errorf("%q: %v", option, got)
			}
		}
	}
}

// TestComments: no text of the input can get out of a comment.
func TestComments(t *testing.T) {
	for _, name := range []string{`a\nkind: Pod`, `a\r\nb`, `a\u2028b`, `a\u0085b`} {
		spec := `{"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"allowIncoming": null, "` + name + `": 1}}`
		for line := range strings.SplitSeq(convertText(t, spec), "\n") {
			if strings.Contains(line, "unknown field") && !strings.HasPrefix(line, "# ") ||
				strings.HasPrefix(line, "kind: Pod") || strings.ContainsAny(line, "\r\u2028\u0085") {
				t.Errorf("%q: %q", name, line)
			}
		}
	}
}

func FuzzConvert(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range inputs {
		in, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		documents, err := convert.Convert(bytes.NewReader(in), convert.Options{})
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := convert.Write(&out, documents); err != nil {
			t.Fatal(err)
		}
		again, err := convert.Convert(&out, convert.Options{})
		if err != nil {
			t.Fatalf("the output cannot be read: %v", err)
		}
		for _, d := range again {
			t.Errorf("the output is still old: %v", d)
		}
	})
}
