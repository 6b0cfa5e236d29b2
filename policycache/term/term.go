// Package term marks words for a terminal that shows colours, and leaves them alone for everything else.
package term

// Style marks words. The zero Style leaves them as they are.
type Style struct{ Colour bool }

// The escape sequences of ECMA-48, "select graphic rendition".
const (
	reset = "\x1b[0m"
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	amber = "\x1b[33m"
)

// Good marks what is allowed or well.
func (s Style) Good(text string) string { return s.mark(green, text) }

// Bad marks what is denied or wrong.
func (s Style) Bad(text string) string { return s.mark(red, text) }

// Mixed marks what is neither.
func (s Style) Mixed(text string) string { return s.mark(amber, text) }

// Bold marks headings.
func (s Style) Bold(text string) string { return s.mark(bold, text) }

// Dim marks what most readers pass over.
func (s Style) Dim(text string) string { return s.mark(dim, text) }

func (s Style) mark(code, text string) string {
	if !s.Colour || text == "" {
		return text
	}
	return code + text + reset
}
