// Package integration tests the agent against a real API server, on real packets: the cluster's objects live in etcd,
// each node's agent follows them through its own watch, and the lab's pods show what is enforced.
package integration
