module github.com/yairfalse/tapio/polku

go 1.26.0

require github.com/yairfalse/tapio/proto v0.0.0

require google.golang.org/protobuf v1.36.12 // indirect

replace (
	github.com/yairfalse/tapio/proto => ../proto
	github.com/yairfalse/tapio/shared => ../shared
)
