module github.com/yairfalse/tapio/proto

go 1.26.0
