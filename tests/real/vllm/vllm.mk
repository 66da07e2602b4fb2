# The gate against a real vLLM: apart from test-real because it installs 5 GB. Included by the root Makefile, which gives
# BIN (the environment's programs) and STAMP (the target that prepares it).

.PHONY: gates gate-vllm

gates: gate-vllm

gate-vllm: $(STAMP) ## install a real vLLM (once, 5 GB), run FLM against it, write docs/gates/vllm.md
	@$(BIN)/python -m tests.real.vllm.build
	@$(BIN)/python -m tests.real.vllm.gate
