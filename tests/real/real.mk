# The real engines: building them once, and the tests that need them. Included by the root Makefile, which gives BIN (the
# environment's programs) and STAMP (the target that prepares it).

.PHONY: engines test-real

engines: $(STAMP) ## build the real engines that test-real runs (once, ten minutes; kept in the user's cache folder)
	@$(BIN)/python -m tests.real.build

test-real: $(STAMP) ## FLM end to end against the real engines, with the official client
	@$(BIN)/python -m tests.real
