module github.com/yairfalse/tapio/shared

go 1.26.0

require (
	github.com/oklog/ulid/v2 v2.1.2
	github.com/spf13/pflag v1.0.10
	github.com/stretchr/testify v1.12.1
	github.com/yairfalse/tapio/proto v0.0.0
	go.yaml.in/yaml/v3 v3.0.5
	google.golang.org/protobuf v1.36.12
)

replace github.com/yairfalse/tapio/proto => ../proto
