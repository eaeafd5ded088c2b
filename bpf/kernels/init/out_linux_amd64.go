package main

// out writes value to an I/O port. Without the privilege for it (iopl) the
// processor raises an exception, which the kernel turns into a signal.
//
//go:noescape
func out(port uint16, value uint8)
