// Package man writes man pages from the definitions of the commands.
package man

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Write writes a page for the command and each below it into a folder, which is made if it is not there. Pages have the
// date of $SOURCE_DATE_EPOCH, where that is set.
func Write(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	root.DisableAutoGenTag = true // it would name the day of the build
	header := doc.GenManHeader{Section: "1", Source: "firstpacket", Manual: "firstpacket"}
	if err := doc.GenManTree(root, &header, dir); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	return nil
}
