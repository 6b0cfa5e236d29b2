// Package traps holds tests of the places where packet filters for pods go wrong: address translation, packets that
// are no plain TCP or UDP, packets that conntrack cannot or may not follow, and other software on the node. Each test
// sends real packets between pods, or crafted ones, through agents that enforce.
package traps
