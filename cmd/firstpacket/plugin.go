package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
)

// Names under which kubectl looks for plugins and for what completes their arguments
// (https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins). Links to this program may have them.
const (
	pluginName         = "kubectl-firstpacket"
	pluginCompleteName = "kubectl_complete-firstpacket"
)

// asPlugin has the program speak of itself as what it was called by, and returns the arguments to run.
func asPlugin(root *cobra.Command, program string, args []string) []string {
	name := filepath.Base(program)
	if name == pluginName || name == pluginCompleteName {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl firstpacket"}
	}
	if name == pluginCompleteName {
		return append([]string{cobra.ShellCompRequestCmd}, args...)
	}
	return args
}
