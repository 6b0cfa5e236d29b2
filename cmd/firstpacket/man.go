//go:build man

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// toolCommands has the command that writes man pages; what it needs for that is in no build for users.
func toolCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "man DIR",
		Short:  "Write man pages of all commands",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("man pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			// The same input gives the same pages, whenever it is run.
			date := time.Unix(0, 0).UTC()
			header := doc.GenManHeader{
				Title: "FIRSTPACKET", Section: "1", Source: "firstpacket", Manual: "firstpacket", Date: &date,
			}
			if err := doc.GenManTree(root, &header, args[0]); err != nil {
				return fmt.Errorf("man pages: %w", err)
			}
			return nil
		},
	}}
}
