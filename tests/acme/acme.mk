# A CA in the tests: Pebble, built once, and the tests that need it. Included by the root Makefile, which gives BIN (the
# environment's programs) and STAMP (the target that prepares it).

.PHONY: pebble test-acme

pebble: $(STAMP) ## build Pebble, the CA that test-acme runs (once, a minute, needs Go; kept in the user's cache folder)
	@$(BIN)/python -m tests.acme.build

test-acme: pebble ## certificates end to end, against a real ACME server that refuses, delays and forgets
	@$(BIN)/python -m tests.acme
