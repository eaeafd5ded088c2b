module github.com/yairfalse/tapio/bpf

go 1.26.0
