module github.com/yairfalse/tapio/tools/testrun

go 1.26.0
