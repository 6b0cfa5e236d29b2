//go:build man

package main

import (
	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/man"
)

// toolCommands has the command that writes man pages; what it needs for that is in no build for users.
func toolCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "man DIR",
		Short:  "Write man pages of all commands",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return man.Write(cmd.Root(), args[0]) },
	}}
}
