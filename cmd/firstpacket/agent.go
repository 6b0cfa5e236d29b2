package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/report"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/warnings"
)

func newAgent() *cobra.Command {
	cfg := agent.Config{Version: versionString()}
	var denyWith string
	var verbose bool
	var megabytes int64
	cmd := &cobra.Command{
		Use:   "agent --node-name NAME [--manifests DIR | --kubeconfig FILE]",
		Short: "Enforce policy on this node",
		Long: `Enforce policy on the pods of this node, until SIGTERM.

The cluster comes from the API server (in-cluster configuration, or --kubeconfig), or from a directory of manifests
(--manifests) that is followed as it changes. It needs CAP_NET_ADMIN in the node's network namespace.

When the agent ends, however it ends, its rules stay: admitted connections go on, new ones to isolated pods wait for
the next agent. 'firstpacket cleanup' removes everything.`,
		Example: `  # on a node of a cluster
  firstpacket agent --node-name "$(hostname)" --kubeconfig /path/to/kubeconfig

  # without any API server
  firstpacket agent --node-name node-a --manifests ./cluster --flow-log -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.DenyWith, err = ruleset.ParseDenyWith(denyWith); err != nil {
				return errUsage{err}
			}
			cfg.FlowLogRotation.MaxBytes = megabytes << 20
			level := zerolog.InfoLevel
			if verbose {
				level = zerolog.DebugLevel
			}
			cfg.Warnings = new(warnings.Recorder)
			cfg.Log = zerolog.New(zerolog.MultiLevelWriter(os.Stderr, cfg.Warnings)).Level(level).
				With().Timestamp().Str("node", cfg.NodeName).Logger()
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node object (default $NODE_NAME)")
	f.StringVar(&cfg.Manifests, "manifests", "",
		"take the cluster from this directory of manifests, and follow its changes")
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "",
		"kubeconfig file to reach the API server with (default: in-cluster configuration)")
	f.StringVar(&cfg.RemoveTaint, "remove-taint", "", "take the taint with this key off the node once it is protected")
	f.BoolVar(&cfg.ReportPolicies, "report-policies", false,
		"write conditions and events of policies, if elected among the agents")
	f.StringVar(&cfg.LeaseNamespace, "lease-namespace", os.Getenv("POD_NAMESPACE"),
		"namespace of the Lease by which agents elect (default $POD_NAMESPACE)")
	f.DurationVar(&cfg.LeaseDuration, "lease-duration", report.DefaultLeaseDuration,
		"elect another agent when the elected one has not been heard of for so long")
	f.BoolVar(&cfg.PodEvents, "pod-events", false, "make events on this node's pods whose connections are denied")
	f.DurationVar(&cfg.StartTimeout, "start-timeout", agent.DefaultStartTimeout,
		"give up when the cluster's state has not arrived by then")
	f.StringVar(&cfg.HTTPAddress, "http-address", agent.DefaultHTTPAddress,
		"serve the page, /healthz, /readyz, /status and /metrics here; several addresses with commas, unix:PATH too")
	f.BoolVar(&cfg.ExposePage, "expose-page", false,
		"serve the page, /flows and /traffic to whoever can reach --http-address, not on loopback and unix sockets only")
	f.BoolVar(&cfg.Profiling, "profiling", false, "serve /debug/pprof too")
	f.StringVar(&cfg.FlowLog, "flow-log", "-", "append the denied-flow log to this file; - is stdout, empty is none")
	f.Int64Var(&megabytes, "flow-log-max-size", 100,
		"begin a new file when the flow log has so many MiB, and keep the old one as FILE.1; 0 lets it grow")
	f.IntVar(&cfg.FlowLogRotation.Backups, "flow-log-backups", 2, "keep so many old files of the flow log")
	f.StringVar(&cfg.FlowSocket, "flow-socket", "",
		"stream the log's lines to 'firstpacket flows' on this unix socket, for example "+flowstream.DefaultPath)
	f.StringVar(&denyWith, "deny-with", "drop", "refuse packets by drop (silent) or reject (TCP reset, ICMP prohibited)")
	f.BoolVar(&cfg.FailOpen, "fail-open", false,
		"let packets pass while no agent can judge them, instead of holding them back")
	f.BoolVar(&cfg.Audit, "audit", false,
		"enforce nothing: let every packet pass, and log what would be denied as would-deny (includes --fail-open)")
	f.IntVar(&cfg.Queues, "queues", 0, "number of NFQUEUEs and threads (default: one per processor, at most 4)")
	f.Uint16Var(&cfg.QueueNumber, "queue-number", agent.DefaultQueueNumber, "first NFQUEUE number")
	f.Var(serverValue{&cfg.DNSServers}, "dns-server",
		"learn names from this server too, ADDRESS or ADDRESS:PORT; may be given several times")
	cfg.MarkMask = mark.Default
	f.Var(maskValue{&cfg.MarkMask}, "mark-mask", "bits of the packet and conntrack marks that firstpacket may use")
	f.DurationVar(&cfg.HoldTime, "hold-time", agent.DefaultHoldTime, "hold packets of pods not known yet for so long")
	f.IntVar(&cfg.CacheSize, "cache-size", agent.DefaultCacheSize,
		"verdicts the kernel keeps, allowed and denied ones of each address family; 100 bytes each")
	f.BoolVar(&cfg.WaitWhenReplaced, "wait-when-replaced", false,
		"after another agent took over, stay idle until ended, for supervisors that restart")
	f.BoolVarP(&verbose, "verbose", "v", false, "log each change that is applied")
	return cmd
}

// serverValue gathers addresses of DNS servers, with or without a port.
type serverValue struct{ list *[]netip.AddrPort }

func (s serverValue) String() string {
	if s.list == nil { // see maskValue
		return ""
	}
	texts := make([]string, len(*s.list))
	for i, a := range *s.list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func (s serverValue) Type() string { return "server" }

func (s serverValue) Set(text string) error {
	const dnsPort = 53
	server, err := netip.ParseAddrPort(text)
	if err != nil {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("%q is no address with or without a port; write it like 169.254.20.10 or [fd00::53]:5353", text)
		}
		server = netip.AddrPortFrom(addr, dnsPort)
	}
	*s.list = append(*s.list, server)
	return nil
}

// maskValue reads a mark mask as nft and kubectl users write it: hexadecimal with 0x, or decimal.
type maskValue struct{ mask *uint32 }

func (m maskValue) String() string {
	if m.mask == nil { // pflag asks the zero value when it looks for defaults
		return ""
	}
	return fmt.Sprintf("%#x", *m.mask)
}

func (m maskValue) Type() string { return "mask" }

func (m maskValue) Set(s string) error {
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return fmt.Errorf("%q is not a 32-bit number; write the mask like %#x", s, mark.Default)
	}
	*m.mask = uint32(v)
	return nil
}
