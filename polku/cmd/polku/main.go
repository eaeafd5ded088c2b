// Command polku is not built yet.
package main

func main() {}
