module github.com/yairfalse/tapio/e2e

go 1.26.0

replace github.com/yairfalse/tapio/proto => ../proto
