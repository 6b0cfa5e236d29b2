// Package dialects tests policy dialects against a real API server: that it takes the objects of 2016 as they were
// written, and what they are converted to. There is nothing in it but tests.
package dialects
