module github.com/yairfalse/tapio/tapio

go 1.26.0

replace (
	github.com/yairfalse/tapio/bpf => ../bpf
	github.com/yairfalse/tapio/proto => ../proto
	github.com/yairfalse/tapio/shared => ../shared
)

require (
	github.com/stretchr/testify v1.12.1
	github.com/yairfalse/tapio/bpf v0.0.0-00010101000000-000000000000
	github.com/yairfalse/tapio/proto v0.0.0
	github.com/yairfalse/tapio/shared v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.48.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/cilium/ebpf v0.22.0 // indirect
	github.com/oklog/ulid/v2 v2.1.2 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
