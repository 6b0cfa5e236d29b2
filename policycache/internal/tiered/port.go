package tiered

import (
	"errors"
	"fmt"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Number is a single port of a protocol; field is where the number stands in the entry.
func Number(proto uint8, n int32, field string) Port {
	if err := checkPort(n); err != nil {
		return Port{Err: err, Field: field}
	}
	return Port{Port: rule.Port{Proto: proto, First: uint16(n), Last: uint16(n)}, Field: field}
}

// Range is a range of ports of a protocol, both ends inclusive; field is where the range stands in the entry. The API
// asks for a start that is less than the end.
func Range(proto uint8, start, end int32, field string) Port {
	if err := checkPort(start); err != nil {
		return Port{Err: err, Field: field + ".start"}
	}
	if err := checkPort(end); err != nil {
		return Port{Err: err, Field: field + ".end"}
	}
	if start >= end {
		return Port{Err: fmt.Errorf("start %d must be less than end %d", start, end), Field: field}
	}
	return Port{Port: rule.Port{Proto: proto, First: uint16(start), Last: uint16(end)}, Field: field}
}

// Named is a port of any protocol that the destination pod has under that name; field is where the name stands.
func Named(name, field string) Port {
	if name == "" {
		return Port{Err: errors.New("the port's name is empty"), Field: field}
	}
	return Port{Port: rule.Port{Name: name}, Field: field}
}

// Bad is an entry that has not exactly one of its fields set; field is the one within which that is so.
func Bad(field string) Port { return Port{Err: errOne, Field: field} }

func checkPort(n int32) error {
	if n < 1 || n > 65535 {
		return fmt.Errorf("%d is not a port number", n)
	}
	return nil
}
