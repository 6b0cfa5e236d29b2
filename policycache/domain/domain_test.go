package domain_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/policycache/domain"
)

// TestMatches holds the examples of the API documentation of DomainName, and what follows from its text.
func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"kubernetes.io", "kubernetes.io", true},
		{"kubernetes.io", "www.kubernetes.io", false},
		{"kubernetes.io", "blog.kubernetes.io", false},
		{"kubernetes.io", "my-kubernetes.io", false},
		{"kubernetes.io", "wikipedia.org", false},
		{"blog.kubernetes.io", "blog.kubernetes.io", true},
		{"blog.kubernetes.io", "www.kubernetes.io", false},
		{"blog.kubernetes.io", "kubernetes.io", false},
		{"*.kubernetes.io", "www.kubernetes.io", true},
		{"*.kubernetes.io", "blog.kubernetes.io", true},
		{"*.kubernetes.io", "latest.blog.kubernetes.io", true},
		{"*.kubernetes.io", "kubernetes.io", false},
		{"*.kubernetes.io", "wikipedia.org", false},
		{"*.kubernetes.io", "my-kubernetes.io", false},
		{"*.kubernetes.io", ".kubernetes.io", false},
		{"*.kubernetes.io", "..kubernetes.io", false},
		{"Kubernetes.IO.", "kubernetes.io", true},
		{"kubernetes.io", "KUBERNETES.io.", true},
		{"*.kubernetes.io", "WWW.Kubernetes.IO.", true},
		{"_sip.example.com", "_sip.example.com", true},
	} {
		p, err := domain.Parse(c.pattern)
		if err != nil {
			t.Fatalf("Parse(%q): %v", c.pattern, err)
		}
		if got := p.Matches(c.name); got != c.want {
			t.Errorf("%q matches %q: %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
	if (domain.Pattern{}).Matches("") {
		t.Error("the zero Pattern matches the empty name")
	}
}

func TestParseErrors(t *testing.T) {
	for _, s := range []string{
		"", ".", "*", "*.", "*.io", "io", "w*.kubernetes.io", "www.*.io", "a..b", ".a.b", "-a.b", "a-.b", "a.b_",
		"a b.c", "a.b..", strings.Repeat("a", 64) + ".io", strings.Repeat("abc.", 70) + "io", "ä.io",
	} {
		if p, err := domain.Parse(s); !errors.Is(err, domain.ErrName) {
			t.Errorf("Parse(%q) = %v, %v", s, p, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("*.kubernetes.io")
	f.Add("a.b.")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := domain.Parse(s)
		if err != nil {
			return
		}
		again, err := domain.Parse(p.String())
		if err != nil || again != p {
			t.Errorf("%q: %v parses to %v, %v", s, p, again, err)
		}
		name := strings.TrimPrefix(p.String(), "*.")
		if p.Matches(name) == strings.HasPrefix(p.String(), "*.") {
			t.Errorf("%v and %q", p, name)
		}
		if strings.HasPrefix(p.String(), "*.") && !p.Matches("x."+name) {
			t.Errorf("%v does not match x.%s", p, name)
		}
	})
}
