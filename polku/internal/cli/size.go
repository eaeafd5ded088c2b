package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes. As a flag it takes binary units.
type size int64

// units from the smallest; the longer names come first where one ends with
// another.
var units = []struct {
	name  string
	bytes size
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}}

// UnmarshalText accepts a whole number of bytes or of a binary unit.
func (s *size) UnmarshalText(text []byte) error {
	number, factor := strings.TrimSpace(string(text)), size(1)
	for _, u := range units {
		if n, found := strings.CutSuffix(number, u.name); found {
			number, factor = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(factor) {
		return fmt.Errorf("size %q, want bytes or a unit such as 512MiB or 4GiB", text)
	}
	*s = size(n) * factor
	return nil
}

// MarshalText writes the largest unit that leaves a whole number.
func (s size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is as MarshalText.
func (s size) String() string {
	for i := len(units) - 2; i >= 0; i-- {
		if u := units[i]; s >= u.bytes && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
