// Package failure holds the tests of what happens when policy changes, when agents come and go, and when things break
// around them: real agents, in the namespaces of a lab, and real packets. docs/failures.md lists what each fault means.
package failure
