//go:build !man

package main

import "github.com/spf13/cobra"

// toolCommands are for building the project. Only a build with the tag man has any: see man.go.
func toolCommands() []*cobra.Command { return nil }
