// Package layout compares the Go types of records with the C types that the
// programs were compiled with, as the object's own type information tells.
package layout

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Compare returns an error that names the first difference in size, order,
// offset or name between the struct of that name and a Go struct.
func Compare(types *btf.Spec, name string, t reflect.Type) error {
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return fmt.Errorf("look up struct %s in the object: %w", name, err)
	}
	return compare(name, s, t)
}

func compare(path string, c btf.Type, t reflect.Type) error {
	c = btf.UnderlyingType(c)
	size, err := btf.Sizeof(c)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if uintptr(size) != t.Size() {
		return fmt.Errorf("%s has %d bytes in C, %d in Go", path, size, t.Size())
	}
	switch c := c.(type) {
	case *btf.Struct:
		if t.Kind() != reflect.Struct {
			return fmt.Errorf("%s is a struct in C, %s in Go", path, t)
		}
		return compareFields(path, c, t)
	case *btf.Array:
		if t.Kind() != reflect.Array || t.Len() != int(c.Nelems) {
			return fmt.Errorf("%s has %d elements in C, is %s in Go", path, c.Nelems, t)
		}
		return compare(path+"[]", c.Type, t.Elem())
	case *btf.Int:
		return compareSign(path, c, t)
	}
	return fmt.Errorf("%s is %v in C: records hold integers, arrays and structs only", path, c)
}

func compareFields(path string, c *btf.Struct, t reflect.Type) error {
	var fields []reflect.StructField
	for i := range t.NumField() {
		if f := t.Field(i); f.Name != "_" {
			fields = append(fields, f)
		}
	}
	if len(fields) != len(c.Members) {
		return fmt.Errorf("%s has %d members in C, %d in Go", path, len(c.Members), len(fields))
	}
	for i, m := range c.Members {
		f := fields[i]
		where := path + "." + m.Name
		if !strings.EqualFold(strings.ReplaceAll(m.Name, "_", ""), f.Name) {
			return fmt.Errorf("%s is called %s in Go", where, f.Name)
		}
		if uintptr(m.Offset.Bytes()) != f.Offset || m.BitfieldSize != 0 {
			return fmt.Errorf("%s is at byte %d in C, %d in Go", where, m.Offset.Bytes(), f.Offset)
		}
		if err := compare(where, m.Type, f.Type); err != nil {
			return err
		}
	}
	return nil
}

func compareSign(path string, c *btf.Int, t reflect.Type) error {
	signed := c.Encoding == btf.Signed || c.Encoding == btf.Char
	switch t.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		// A plain char of C has no sign in BTF.
		if !signed && c.Size > 1 {
			return fmt.Errorf("%s is unsigned in C, %s in Go", path, t)
		}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if signed {
			return fmt.Errorf("%s is signed in C, %s in Go", path, t)
		}
	default:
		return fmt.Errorf("%s is an integer in C, %s in Go", path, t)
	}
	return nil
}
