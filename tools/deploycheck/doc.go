// Package deploycheck holds what is true of deploy/: that Kustomize and Helm
// describe the same, that an API server takes it, and that nothing may do more than
// it needs. It has tests only.
package deploycheck
