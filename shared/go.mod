module github.com/yairfalse/tapio/shared

go 1.26.0
