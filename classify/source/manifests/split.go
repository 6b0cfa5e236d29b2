package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// document is one document of a file.
type document struct {
	// number counts from 1, line is that of its first line.
	number, line int
	raw          []byte
}

var bom = []byte("\xef\xbb\xbf")

// split finds the documents of a file: a stream of JSON values, or YAML documents between lines "---".
func split(content []byte) []document {
	content = bytes.TrimPrefix(content, bom)
	if docs, ok := splitJSON(content); ok {
		return docs
	}
	return splitYAML(content)
}

// splitJSON is for content that is JSON throughout. Anything else may still be YAML, of which "{a: b}" is an example.
func splitJSON(content []byte) ([]document, bool) {
	if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		return nil, false
	}
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(content))
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, true
		}
		if err != nil {
			return nil, false
		}
		start := int(dec.InputOffset()) - len(raw)
		docs = append(docs, document{
			number: len(docs) + 1, line: 1 + bytes.Count(content[:start], []byte("\n")), raw: raw,
		})
	}
}

// splitYAML cuts at document markers (YAML 1.2, section 9.1: "---" begins a document, "..." ends one, both at the start
// of a line and before white space). What no marker begins counts as a document only if there is something in it.
func splitYAML(content []byte) []document {
	var docs []document
	cur := document{number: 1, line: 1}
	begin, marked := 0, false
	finish := func(end int) {
		cur.raw = content[begin:end]
		if marked || !blank(cur.raw) {
			docs = append(docs, cur)
			cur.number++
		}
	}
	line := 0
	for at := 0; at < len(content); {
		line++
		end := len(content)
		if i := bytes.IndexByte(content[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		text := content[at:end]
		if begins := marker(text, "---"); begins || marker(text, "...") {
			finish(at)
			// What stands behind "---" on its line belongs to the new document.
			begin, marked, cur.line = at+3, begins, line
		}
		at = end
	}
	finish(len(content))
	return docs
}

func marker(line []byte, m string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(m))
	return ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r' || rest[0] == '\n')
}

// blank tells whether there is nothing but white space and comments.
func blank(raw []byte) bool {
	for line := range bytes.Lines(raw) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}
