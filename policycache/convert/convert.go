// Package convert writes policies of old dialects as objects of networking.k8s.io/v1 and
// policy.networking.k8s.io/v1alpha2 that mean the same, with a comment for whatever has no equivalent there.
//
// What an old object means depends on the annotation of its namespace, so that both belong into the input. Objects of
// other kinds, and policies that are not old, are left out of the output; policies are looked at to keep names apart.
package convert

import (
	"fmt"
	"io"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Options change how the input is read.
type Options struct {
	// Namespace is that of objects that do not name theirs; "default" if empty.
	Namespace string
}

// Document is one document of the output.
type Document struct {
	// Comments are lines of text without the sign of a comment.
	Comments []string
	// Object is nil where there is nothing but comments.
	Object map[string]any
}

// Convert reads manifests, YAML or JSON, and returns the documents that replace the old ones among them, in the order
// of the input. An error means that the input cannot be read, and names the document.
func Convert(in io.Reader, opts Options) ([]Document, error) {
	if opts.Namespace == "" {
		opts.Namespace = metav1.NamespaceDefault
	}
	c := &converter{
		opts:       opts,
		namespaces: make(map[string]*namespace),
		names:      make(map[string]bool),
	}
	objects, err := read(in)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		c.look(o)
	}
	for _, o := range objects {
		if err := c.object(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
	}
	return c.out, nil
}

// Write writes the documents as a YAML stream.
func Write(w io.Writer, documents []Document) error {
	var b strings.Builder
	for i, d := range documents {
		if i > 0 {
			b.WriteString("---\n")
		}
		for _, line := range d.Comments {
			b.WriteString("# ")
			b.WriteString(strings.Map(oneLine, line))
			b.WriteByte('\n')
		}
		if d.Object == nil {
			continue
		}
		text, err := yaml.Marshal(d.Object)
		if err != nil {
			return fmt.Errorf("writing YAML: %w", err)
		}
		b.Write(text)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing YAML: %w", err)
	}
	return nil
}

// oneLine keeps text that comes from the input, names of fields for instance, from ending the comment that it is in.
func oneLine(r rune) rune {
	if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
		return ' '
	}
	return r
}

// converter holds what is known of the input.
type converter struct {
	opts       Options
	namespaces map[string]*namespace
	names      map[string]bool // kind/namespace/name of what the output's names must differ from
	out        []Document
}

// namespace is what the input says of a namespace.
type namespace struct {
	alpha, beta isolation.State
	// denied is true once the policy that isolates it is in the output.
	denied bool
}

// look notes what other objects depend on.
func (c *converter) look(o *object) {
	switch {
	case o.is("v1", "Namespace"):
		var ns corev1.Namespace
		if o.decode(&ns) != nil {
			return // reported when it is converted
		}
		compact := cluster.NewNamespace(&ns)
		c.namespaces[ns.Name] = &namespace{alpha: alpha.Read(compact), beta: beta.Read(compact)}
	case o.is(networkingVersion, kindNetworkPolicy), o.is(policyVersion, kindClusterNetworkPolicy):
		c.names[o.Kind+"/"+c.namespaceOf(o)+"/"+o.Name] = true
	}
}

func (c *converter) namespaceOf(o *object) string {
	if o.Kind == kindClusterNetworkPolicy {
		return ""
	}
	if o.Namespace == "" {
		return c.opts.Namespace
	}
	return o.Namespace
}

// object converts one object of the input.
func (c *converter) object(o *object) error {
	switch {
	case o.is("v1", "Namespace"):
		var ns corev1.Namespace
		if err := o.decode(&ns); err != nil {
			return err
		}
		c.namespace(&ns)
	case o.isAlpha():
		var np alpha.NetworkPolicy
		if err := o.decode(&np); err != nil {
			return err
		}
		np.Namespace = c.namespaceOf(o)
		c.alpha(&np)
	case o.is(extensionsv1beta1.SchemeGroupVersion.String(), kindNetworkPolicy):
		var np extensionsv1beta1.NetworkPolicy
		if err := o.decode(&np); err != nil {
			return err
		}
		np.Namespace = c.namespaceOf(o)
		c.beta(&np)
	case o.is(v1alpha1.GroupVersion.String(), "AdminNetworkPolicy"):
		var anp v1alpha1.AdminNetworkPolicy
		if err := o.decode(&anp); err != nil {
			return err
		}
		return c.admin(&anp)
	case o.is(v1alpha1.GroupVersion.String(), "BaselineAdminNetworkPolicy"):
		var banp v1alpha1.BaselineAdminNetworkPolicy
		if err := o.decode(&banp); err != nil {
			return err
		}
		return c.baseline(&banp)
	case o.is(extensionsv1beta1.SchemeGroupVersion.String(), alpha.ThirdPartyResource):
		c.comment("ThirdPartyResource %s: %s. Policies of %s need neither.", o.Name, alpha.ExplainThirdParty(o.Name),
			networkingVersion)
	}
	return nil
}

// add puts an object into the output.
func (c *converter) add(o runtime.Object, comments ...string) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(raw, "status")
	if spec, ok := raw["spec"].(map[string]any); ok && len(spec) == 0 {
		delete(raw, "spec") // a Namespace's
	}
	if meta, ok := raw["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	c.out = append(c.out, Document{Comments: comments, Object: raw})
	return nil
}

func (c *converter) comment(format string, args ...any) {
	c.out = append(c.out, Document{Comments: []string{fmt.Sprintf(format, args...)}})
}

// meta takes over what was written by hand of an object's metadata, and finds a name that is not taken.
func (c *converter) meta(kind string, old *metav1.ObjectMeta, suffix string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: old.Namespace, Labels: old.Labels}
	for k, v := range old.Annotations {
		if k != corev1.LastAppliedConfigAnnotation {
			metav1.SetMetaDataAnnotation(&m, k, v)
		}
	}
	m.Name = c.name(kind, old.Namespace, old.Name, suffix)
	return m
}

func (c *converter) name(kind, namespace, name, suffix string) string {
	for try, n := name, 1; ; n++ {
		key := kind + "/" + namespace + "/" + try
		if !c.names[key] {
			c.names[key] = true
			return try
		}
		try = name + suffix
		if n > 1 {
			try = fmt.Sprintf("%s%s-%d", name, suffix, n)
		}
	}
}

// renamed is the comment for objects that could not keep their name.
func renamed(old, name string) []string {
	if old == name {
		return nil
	}
	return []string{fmt.Sprintf("Renamed from %s, because there is another policy of this name.", old)}
}

func problems(list []rule.Problem) []string {
	var lines []string
	for _, p := range list {
		lines = append(lines, "No equivalent: "+p.String())
	}
	return lines
}
