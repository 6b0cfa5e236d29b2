//go:build race

package source

// measuredPods is small under the race detector, which multiplies time and memory; there the budget is not held.
const measuredPods, measured = 2_000, false
