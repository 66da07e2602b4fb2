"""FLM end to end against a real vLLM on the CPU: `make gate-vllm`, apart from `make test-real` for its weight."""
