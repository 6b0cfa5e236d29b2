//go:build !race

package endpoint

// measuredPods is the size of cluster that the memory budget is stated for.
const measuredPods, measured = 100_000, true
