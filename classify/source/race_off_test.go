//go:build !race

package source

// measuredPods is the size of cluster that the memory budget is stated for.
const measuredPods, measured = 100_000, true
