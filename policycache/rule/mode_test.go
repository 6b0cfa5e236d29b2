package rule

import "testing"

func TestSetMode(t *testing.T) {
	for value, want := range map[string]struct{ audit, problem bool }{
		"": {}, "enforce": {}, "audit": {audit: true}, "Audit": {problem: true}, "dry-run": {problem: true},
	} {
		var p Policy
		p.setMode(map[string]string{ModeAnnotation: value})
		if p.Audit != want.audit || (len(p.Problems) > 0) != want.problem {
			t.Errorf("%q: audit %v, problems %v", value, p.Audit, p.Problems)
		}
	}
	var p Policy
	if p.setMode(nil); p.Audit || p.Problems != nil {
		t.Errorf("no annotations: %+v", p)
	}
}
