// Fills in what Ollama makes of each OLLAMA_HOST in a file of cases: `go run . cases.json`.
//
// It asks Ollama's own parser (envconfig, of the version in go.mod) and knows nothing of FLM. A new case is an object
// with only its "value"; running this again writes the rest, one case a line.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"

	"github.com/ollama/ollama/envconfig"
)

type Case struct {
	Value  string `json:"value"`
	Scheme string `json:"scheme"`
	Host   string `json:"host"` // host:port as its server listens
	Path   string `json:"path"`
	Dialed string `json:"dialed"` // host:port as its CLI connects
}

func filled(value string) Case {
	if err := os.Setenv("OLLAMA_HOST", value); err != nil {
		log.Fatalf("%q: %v", value, err)
	}
	own, dialed := envconfig.Host(), envconfig.ConnectableHost()
	return Case{value, own.Scheme, own.Host, own.Path, dialed.Host}
}

func main() {
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var cases []Case
	if err := json.Unmarshal(data, &cases); err != nil {
		log.Fatal(err)
	}
	var out bytes.Buffer
	out.WriteString("[\n")
	for index, each := range cases {
		line := &bytes.Buffer{}
		encoder := json.NewEncoder(line)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(filled(each.Value)); err != nil {
			log.Fatal(err)
		}
		out.Write(bytes.TrimRight(line.Bytes(), "\n"))
		if index+1 < len(cases) {
			out.WriteString(",")
		}
		out.WriteString("\n")
	}
	out.WriteString("]\n")
	if err := os.WriteFile(os.Args[1], out.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
