// Command generate writes the files below deploy that are made from others: `make generate`.
package main

import (
	"fmt"
	"os"

	"github.com/firstpacket/firstpacket/deploy/build/generated"
)

func main() {
	changed, err := generated.Write("..") // `go run -C deploy/build`
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
	fmt.Printf("generate: %d files changed\n", changed)
}
