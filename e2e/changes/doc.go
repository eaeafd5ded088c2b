// Package changes keeps the books of what happens in a cluster: every version of
// every object that an API server told a writer of, and every deletion, must be in
// AHTI's store once, whatever is killed on the way from etcd to there.
//
// The processes are real: etcd, kube-apiserver, two porttis, polku and ahti.
//
//	make changes CHANGES=200000 SEED=7
package changes
