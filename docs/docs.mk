# The pages that are written from the code. Included by the root Makefile, which gives BIN and STAMP.

.PHONY: docs

docs:: $(STAMP) ## write anew the pages that come from the code
	@$(BIN)/python -m tests.engines.parameter_page
	@$(BIN)/python -m tests.behaviour.page
	@$(BIN)/python -m tests.engines.closed_routes
