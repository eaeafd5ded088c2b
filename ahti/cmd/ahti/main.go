// Command ahti is not built yet.
package main

func main() {}
