module ollamahost

go 1.26.0

require github.com/ollama/ollama v0.34.4
