// Package build holds the checks of what is deployed beside the agent. The packages below it make the files that are
// made from others, and the image: Helm, Prometheus and registries' libraries are needed here and nowhere else, so this
// is a module of its own.
package build
