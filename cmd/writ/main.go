// Command writ runs and operates a control plane for AI agents. Its commands,
// flags, JSON fields and exit codes are in docs/cli.md.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
