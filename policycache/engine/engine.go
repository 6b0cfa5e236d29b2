// Package engine decides which flows the policies of a cluster allow.
//
// A Model takes changes of endpoints and policies and commits them to immutable Snapshots; any number of Evaluators,
// one for each thread, answer flows from a Snapshot. A verdict takes the same few steps however many policies and
// pods there are:
//
//  1. Both addresses are looked up in one trie, which gives the owner and its Programs. A Program is the list of
//     policies that select the pod in one direction, and pods under the same policies share it.
//  2. For each side that is a pod of this node: the Program, the identity of the peer, the peer's class among the
//     Program's address blocks, and the named ports of the destination are the key of a compiled pair. The pair is the
//     result of all rules of all tiers for this kind of peer, merged once into tables by port.
//  3. The port is looked up in the pair's table, which gives the decision: allow or not, and which policy says so.
//
// The parts of that key change when, and only when, what they stand for does, so compiled pairs need no
// invalidation. The kernel side is told what changed by the Delta of each Commit.
package engine
