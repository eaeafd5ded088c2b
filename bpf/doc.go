// Package bpf loads Tapio's kernel programs and reads what they send.
//
// Every signal has a folder of its own with one C file, the object made from
// it and the Go type of its record. This package owns what they share: the
// ring buffer, the counters and the rate limit (Shared), loading and attaching
// (Attachment), and the read path (Reader). It knows nothing of events, pods
// or exporters.
package bpf

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type head -type counter maps maps.bpf.c -- -O2 -Wall -Werror -Iinclude
