// Package deploy holds the tests of what is deployed, against a real API server: the manifests are applied there, and
// the agent of the real image runs with the user, the capabilities, the mounts and the ServiceAccount that its
// DaemonSet gives it, and enforces on real packets.
package deploy
