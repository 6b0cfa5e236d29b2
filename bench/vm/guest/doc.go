// Package guest tests what only a distribution's kernel has. Its tests are built with the tag vm and run in the test
// machine of bench/vm (make test-vm), never on the host.
package guest
