package lab_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
)

// roleEnv makes the test binary play another part than running tests.
const roleEnv = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "agent":
		err = standIn()
	case "victim":
		err = victim()
	default:
		if err = ns.Enter(); err == nil {
			goleak.VerifyTestMain(m)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// standIn is an agent that enforces nothing: it serves the endpoints that the lab asks.
func standIn() error {
	flag := func(name string) string { return os.Args[slices.Index(os.Args, name)+1] }
	fmt.Fprintln(os.Stderr, "agent of", flag("--node-name"))
	fmt.Printf(`{"node":%q,"verdict":"deny","src":{"ip":"10.0.0.1"},"dst":{"port":80},"policies":["a/b"],"count":2}`+"\n",
		flag("--node-name"))
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		digest, err := manifests.Digest(flag("--manifests"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `{"node":%q,"generation":1,"manifests":%q}`, flag("--node-name"), digest)
	})
	http.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# HELP h Some help.\nfirstpacket_queue_packets_total{queue=\"0\"} 3\n"+
			"firstpacket_queue_packets_total{queue=\"1\"} 4\n"+
			"h_bucket{le=\"0.1\"} 0\nh_bucket{le=\"0.2\"} 10\nh_bucket{le=\"+Inf\"} 10\n")
	})
	return http.ListenAndServe(flag("--http-address"), nil)
}
