# The real engines: building them once, and the tests that need them. Included by the root Makefile, which gives PYTHON
# (the environment's interpreter) and the target that prepares it.

PYTHON ?= .venv/bin/python

.PHONY: engines test-real

engines: ## Build the real engines for test-real (once, about ten minutes; kept in the user's cache folder)
	$(PYTHON) -m tests.real.build

test-real: ## Run FLM end to end against the real engines
	$(PYTHON) -m pytest tests/real -m real
