package deploy

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// roleEnv makes the test binary play another part than running tests: those of a container runtime.
const roleEnv = "DEPLOY_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "init":
		os.Exit(containerInit())
	case "container":
		err = containerExec()
	default:
		if err = ns.Enter(); err == nil {
			goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
				if err := binary.Remove(); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
				os.Exit(code)
			}))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
