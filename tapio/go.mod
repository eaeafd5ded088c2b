module github.com/yairfalse/tapio/tapio

go 1.26.0
