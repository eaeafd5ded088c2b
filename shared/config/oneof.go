package config

import (
	"fmt"
	"slices"
	"strings"
)

// OneOf checks the value of a flag that has few.
func OneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("--%s: %q is none of %s", flag, value, strings.Join(allowed, ", "))
}
