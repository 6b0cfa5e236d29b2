package traffic

import (
	"fmt"
	"regexp"
	"strings"
)

// Suffixes that controllers give the names of pods. Kubernetes draws random ones from letters and digits that spell no
// words (k8s.io/apimachinery/pkg/util/rand).
var generated = []*regexp.Regexp{
	// Deployment: hash of the template, then random.
	regexp.MustCompile(`-[bcdf-hj-np-tv-xz24-9]{6,10}-[bcdf-hj-np-tv-xz24-9]{5}$`),
	// ReplicaSet, DaemonSet, Job.
	regexp.MustCompile(`-[bcdf-hj-np-tv-xz24-9]{5}$`),
	// StatefulSet, and what is numbered by hand.
	regexp.MustCompile(`-[0-9]{1,5}$`),
}

// Workload is the party that a pod is part of: by its name, since that is all that flow logs have of it.
func Workload(namespace, pod string) Party {
	for _, suffix := range generated {
		if at := suffix.FindStringIndex(pod); len(at) > 0 && at[0] > 0 {
			return Party{Namespace: namespace, Name: pod[:at[0]]}
		}
	}
	return Party{Namespace: namespace, Name: pod}
}

// Port names a port of a protocol, which is tcp, udp, sctp, icmp, icmpv6, or a number.
func Port(proto string, port uint16) string {
	proto = strings.ToUpper(proto)
	if port == 0 {
		return proto
	}
	return fmt.Sprintf("%d/%s", port, proto)
}
