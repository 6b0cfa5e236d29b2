// Package crds holds the CustomResourceDefinitions that firstpacket brings along, as files to apply and as text.
package crds

import _ "embed" // for the text

// AlphaNetworkPolicy defines networkpolicys.net.alpha.kubernetes.io, the policies of Kubernetes 1.2 and 1.3, as YAML.
//
//go:embed net.alpha.kubernetes.io_networkpolicys.yaml
var AlphaNetworkPolicy []byte
