package generated

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInStep holds generated files to what they are made from.
func TestInStep(t *testing.T) {
	const deploy = "../.."
	for _, step := range []func(string) ([]File, error){Copies, Rendered} {
		files, err := step(deploy)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			have, err := os.ReadFile(filepath.Join(deploy, f.Path))
			if err != nil {
				t.Errorf("%v: run `make generate`", err)
				continue
			}
			if diff := cmp.Diff(string(f.Content), string(have)); diff != "" {
				t.Errorf("deploy/%s is out of step, run `make generate` (-made +there):\n%s", f.Path, diff)
			}
		}
	}
}
