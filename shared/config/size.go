package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. As a flag it takes binary units.
type Size int64

// units from the smallest; the longer names come first where one ends with
// another.
func units() [5]unit {
	return [...]unit{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}}
}

type unit struct {
	name  string
	bytes Size
}

// UnmarshalText accepts a whole number of bytes or of a binary unit.
func (s *Size) UnmarshalText(text []byte) error {
	number, factor := strings.TrimSpace(string(text)), Size(1)
	for _, u := range units() {
		if n, found := strings.CutSuffix(number, u.name); found {
			number, factor = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(factor) {
		return fmt.Errorf("size %q, want bytes or a unit such as 512MiB or 4GiB", text)
	}
	*s = Size(n) * factor
	return nil
}

// MarshalText writes the largest unit that leaves a whole number.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is as MarshalText.
func (s Size) String() string {
	all := units()
	for i := len(all) - 2; i >= 0; i-- {
		if u := all[i]; s >= u.bytes && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
