// Command tiny does nothing; tests put it into images.
package main

func main() {}
