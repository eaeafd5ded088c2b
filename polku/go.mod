module github.com/yairfalse/tapio/polku

go 1.26.0

replace (
	github.com/yairfalse/tapio/proto => ../proto
	github.com/yairfalse/tapio/shared => ../shared
)
