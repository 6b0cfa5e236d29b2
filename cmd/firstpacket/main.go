// Command firstpacket enforces Kubernetes NetworkPolicy on a node, and is the tool to try, explain and measure that.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes. They are part of the command's interface and listed in its help.
const (
	exitOK      = 0
	exitFailure = 1 // the command could not do its job; one sentence on stderr says why and what to do
	exitUsage   = 2 // unknown flag, missing argument
	exitNo      = 3 // the command did its job, and the answer is no: denied, not ready, would change
)

// errUsage marks errors of the command line itself.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// errNo ends a command whose answer is no and has been printed.
var errNo = errors.New("the answer is no")

func main() { os.Exit(run(os.Args[0], os.Args[1:])) }

func run(program string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(asPlugin(root, program, args))
	cmd, err := root.ExecuteContextC(ctx)
	var usage errUsage
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "firstpacket: %v\nRun '%s --help' for usage.\n", err, cmd.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(os.Stderr, "firstpacket: %v\n", err)
		return exitFailure
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "firstpacket",
		Short: "Enforce Kubernetes NetworkPolicy on the first packet of every pod-bound connection",
		Long: `firstpacket enforces Kubernetes NetworkPolicy on a node. The kernel diverts the first packet of a new
pod-bound connection to the agent, the agent judges it against compiled policy, and the kernel carries the rest.

Exit status: 0 success, 1 the command could not do its job, 2 wrong usage, 3 the answer is no (see
explain, simulate and status).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateFlagGroups(); err != nil {
				return errUsage{err}
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errUsage{err} })
	root.AddCommand(newAgent(), newBench(), newCleanup(), newLab(), newProbe(), newVersion())
	root.AddCommand(newConvert(), newExplain(), newFlows(), newMatrix(), newSimulate(), newStatus(), newUI())
	root.AddCommand(toolCommands()...)
	return root
}

// noArgs refuses positional arguments with the usage exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errUsage{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), args)}
	}
	return nil
}
