module github.com/yairfalse/tapio/ahti

go 1.26.0

require (
	github.com/yairfalse/tapio/proto v0.0.0
	github.com/yairfalse/tapio/shared v0.0.0
)

replace (
	github.com/yairfalse/tapio/proto => ../proto
	github.com/yairfalse/tapio/shared => ../shared
)
