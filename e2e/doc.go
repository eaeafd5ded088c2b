// Package e2e judges the whole chain from outside: it starts the binaries,
// breaks things for real, and looks at what comes out of their interfaces. It
// imports no package of theirs.
package e2e
