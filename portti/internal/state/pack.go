package state

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
)

// packer compresses versions to a third: the file is mapped into memory, and counts
// as ours.
type packer struct {
	buf bytes.Buffer
	to  *flate.Writer
}

func newPacker() (*packer, error) {
	p := &packer{}
	var err error
	if p.to, err = flate.NewWriter(&p.buf, flate.BestSpeed); err != nil {
		return nil, fmt.Errorf("compress the state: %w", err)
	}
	return p, nil
}

// pack returns the compressed version, which the caller owns.
func (p *packer) pack(version []byte) []byte {
	p.buf.Reset()
	p.to.Reset(&p.buf)
	_, _ = p.to.Write(version) // into memory
	_ = p.to.Close()
	return bytes.Clone(p.buf.Bytes())
}

func unpack(packed []byte) ([]byte, error) {
	version, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
	if err != nil {
		return nil, fmt.Errorf("decompress a version: %w", err)
	}
	return version, nil
}
