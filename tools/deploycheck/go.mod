module github.com/yairfalse/tapio/tools/deploycheck

go 1.26.0

require (
	github.com/blang/semver/v4 v4.0.0 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	helm.sh/helm/v4 v4.3.1 // indirect
	k8s.io/api v0.37.2 // indirect
	k8s.io/apimachinery v0.37.2 // indirect
	k8s.io/client-go v0.37.2 // indirect
	sigs.k8s.io/kustomize/api v0.21.2 // indirect
	sigs.k8s.io/kustomize/kyaml v0.21.2 // indirect
)
