package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/policycache/convert"
)

func newConvert() *cobra.Command {
	var files []string
	var opts convert.Options
	cmd := &cobra.Command{
		Use:   "convert -f FILE",
		Short: "Write policies of old dialects as today's objects",
		Long: `Print the networking.k8s.io/v1 or policy.networking.k8s.io/v1alpha2 objects that mean the same as old
ones: those of the 2016 alpha, of extensions/v1beta1, and AdminNetworkPolicy and BaselineAdminNetworkPolicy. Whatever
has no equivalent becomes a comment. Other objects are left out.

What an old NetworkPolicy means depends on the annotation of its namespace: give the Namespace objects too.

Exit status: 0 success, 1 a file cannot be read, 2 wrong usage.`,
		Example: `  # from files
  firstpacket convert -f namespace.yaml -f policies.yaml

  # from a cluster
  kubectl get namespaces,networkpolicys.net.alpha.kubernetes.io -A -o yaml | firstpacket convert -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errUsage{errors.New("nothing to convert: give files with -f, or - for stdin")}
			}
			in, err := concatenate(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			documents, err := convert.Convert(in, opts)
			if err != nil {
				return err
			}
			return convert.Write(cmd.OutOrStdout(), documents)
		},
	}
	filesFlag(cmd, &files, "manifests to convert: a file, or - for stdin; repeatable")
	cmd.Flags().StringVarP(&opts.Namespace, "namespace", "n", "",
		`namespace of objects that name none (default "default")`)
	return cmd
}

// concatenate reads files as one stream of YAML documents.
func concatenate(stdin io.Reader, files []string) (io.Reader, error) {
	var parts []io.Reader
	for _, name := range files {
		if name == "-" {
			parts = append(parts, stdin, separator())
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("cannot read the manifests: %w", err)
		}
		parts = append(parts, bytes.NewReader(raw), separator())
	}
	return io.MultiReader(parts...), nil
}

func separator() io.Reader { return strings.NewReader("\n---\n") }
