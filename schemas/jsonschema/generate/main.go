// Command generate writes the JSON Schemas beside their package; it is run by
// go generate in schemas/jsonschema.
package main

import (
	"fmt"
	"os"

	"github.com/writ-sh/writ/schemas/jsonschema"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	docs, err := jsonschema.Documents("..")
	if err != nil {
		return err
	}
	for name, doc := range docs {
		if err := os.WriteFile(name, doc, 0o644); err != nil {
			return fmt.Errorf("write a schema; run this by go generate in schemas/jsonschema: %w", err)
		}
	}
	return nil
}
