module github.com/yairfalse/tapio/portti

go 1.26.0

replace (
	github.com/yairfalse/tapio/proto => ../proto
	github.com/yairfalse/tapio/shared => ../shared
)

require (
	github.com/spf13/cobra v1.10.2
	github.com/stretchr/testify v1.12.1
	github.com/yairfalse/tapio/shared v0.0.0-00010101000000-000000000000
	go.etcd.io/bbolt v1.5.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.48.0 // indirect
)
