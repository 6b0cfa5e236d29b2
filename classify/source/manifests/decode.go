package manifests

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxListDepth bounds Lists inside Lists; kubectl itself writes one level.
const maxListDepth = 4

// decoded is what one document holds. It does not depend on where the document stands, and is never changed.
type decoded struct {
	objects []typed
	// ignored are the kinds of objects that are not understood.
	ignored []schema.GroupVersionKind
	// notes lack File, Document and Line.
	notes []Note
	// problems lack File, Document and Line.
	problems []Problem
	// syntax is true when the only problem is the YAML parser's, whose line numbers are those of the document.
	syntax bool
}

type typed struct {
	kind   *Kind
	object Object
}

func (t typed) id() string { return describe(t.kind.Kind, t.object.GetNamespace(), t.object.GetName()) }

// decode reads one document, YAML or JSON. A document without content holds nothing.
func (r *registry) decode(raw []byte) *decoded {
	d := &decoded{}
	if blank(raw) {
		return d
	}
	js, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		detail := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
		d.fail("", "", strings.ReplaceAll(detail, "\n  ", "; "))
		d.syntax = true
		return d
	}
	if string(js) == "null" {
		return d
	}
	r.decodeValue(d, js, "", metav1.TypeMeta{}, 0)
	return d
}

// decodeValue reads one object or List. Path is its place in the document; inherited is the type of items of a typed
// list.
func (r *registry) decodeValue(d *decoded, js json.RawMessage, path string, inherited metav1.TypeMeta, depth int) {
	if len(js) == 0 || js[0] != '{' {
		d.fail("", path, "must be an object with apiVersion and kind")
		return
	}
	var head metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(js, &head); err != nil {
		d.failDecoding("", path, err)
		return
	}
	if head.APIVersion == "" && head.Kind == "" {
		head = inherited
	}
	if head.APIVersion == "" {
		head.APIVersion = r.versionOf(head.Kind, js)
	}
	if head.APIVersion == "" || head.Kind == "" {
		missing := "apiVersion"
		if head.Kind == "" {
			missing = "kind"
		}
		d.fail("", join(path, missing), "is missing")
		return
	}
	gv, err := schema.ParseGroupVersion(head.APIVersion)
	if err != nil {
		d.fail("", join(path, "apiVersion"), err.Error())
		return
	}
	gvk := gv.WithKind(head.Kind)
	kind, ok := r.byKind[gvk]
	if !ok {
		itemKind, isList := strings.CutSuffix(gvk.Kind, "List")
		version, otherVersion := r.versions[gvk.GroupKind()]
		switch {
		case isList:
			inherited := metav1.TypeMeta{APIVersion: head.APIVersion, Kind: itemKind}
			if itemKind == "" {
				inherited = metav1.TypeMeta{}
			}
			r.decodeList(d, js, path, inherited, depth)
		case otherVersion:
			gv.Version = version
			d.fail("", join(path, "apiVersion"),
				fmt.Sprintf("%s of %s is not supported, write %s", head.APIVersion, gvk.Kind, gv))
		default:
			d.ignored = append(d.ignored, gvk)
		}
		return
	}
	if kind.Explain != nil {
		r.explain(d, kind, js, path)
		return
	}
	r.decodeObject(d, kind, js, path, head)
}

// versionOf is the apiVersion of an object that does not name its own, if there is a kind that knows it as one of its.
func (r *registry) versionOf(kind string, js json.RawMessage) string {
	for _, k := range r.bare[kind] {
		if k.Bare(js) {
			return k.GroupVersion().String()
		}
	}
	return ""
}

// explain notes what is to be said of an object that means nothing.
func (r *registry) explain(d *decoded, kind *Kind, js json.RawMessage, path string) {
	var o metav1.PartialObjectMetadata
	if err := kjson.UnmarshalCaseSensitivePreserveInts(js, &o); err != nil {
		d.failDecoding("", path, err)
		return
	}
	d.notes = append(d.notes, Note{Object: describe(kind.Kind, o.Namespace, o.Name), Text: kind.Explain(o.Name)})
}

func (r *registry) decodeList(d *decoded, js json.RawMessage, path string, inherited metav1.TypeMeta, depth int) {
	if depth == maxListDepth {
		d.fail("", path, "lists are nested too deeply")
		return
	}
	var list struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	strict, err := kjson.UnmarshalStrict(js, &list)
	if err != nil {
		d.failDecoding("", path, err)
		return
	}
	d.failStrict("", path, strict)
	for i, item := range list.Items {
		r.decodeValue(d, item, fmt.Sprintf("%s[%d]", join(path, "items"), i), inherited, depth+1)
	}
}

func (r *registry) decodeObject(d *decoded, kind *Kind, js json.RawMessage, path string, meta metav1.TypeMeta) {
	o := kind.New()
	strict, err := kjson.UnmarshalStrict(js, o)
	name := describe(kind.Kind, o.GetNamespace(), o.GetName())
	if err != nil {
		d.failDecoding(name, path, err)
		return
	}
	o.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind))
	if kind.Namespaced && o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
		name = describe(kind.Kind, o.GetNamespace(), o.GetName())
	}
	if kind.Default != nil {
		kind.Default(o)
	}
	before := len(d.problems)
	d.failStrict(name, path, strict)
	if kind.Validate != nil {
		for _, e := range kind.Validate(o) {
			d.fail(name, join(path, e.Field), e.ErrorBody())
		}
	}
	// Some checks walk maps.
	slices.SortStableFunc(d.problems[before:], func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Detail, b.Detail))
	})
	if len(d.problems) == before {
		d.objects = append(d.objects, typed{kind, o})
	}
}

func (d *decoded) fail(object, field, detail string) {
	d.problems = append(d.problems, Problem{Object: object, Field: field, Detail: detail})
}

// failDecoding reports JSON that does not fit the Go type.
func (d *decoded) failDecoding(object, path string, err error) {
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		d.fail(object, join(path, mismatch.Field), fmt.Sprintf("must be of type %s, not %s", mismatch.Type, mismatch.Value))
		return
	}
	d.fail(object, path, err.Error())
}

// failStrict reports fields that are unknown or come twice.
func (d *decoded) failStrict(object, path string, strict []error) {
	for _, err := range strict {
		var fe kjson.FieldError
		if !errors.As(err, &fe) {
			d.fail(object, path, err.Error())
			continue
		}
		detail, _, _ := strings.Cut(err.Error(), ` "`)
		d.fail(object, join(path, fe.FieldPath()), detail)
	}
}

func describe(kind, namespace, name string) string {
	switch {
	case name == "":
		return kind
	case namespace == "":
		return kind + " " + name
	}
	return kind + " " + namespace + "/" + name
}

func join(path, field string) string {
	switch {
	case path == "":
		return field
	case field == "":
		return path
	}
	return path + "." + field
}
