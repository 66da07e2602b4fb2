# Gates that take minutes and so are apart from `make test`: two of the native crate, one of which needs a nightly Rust, and
# the renewal of a certificate, which needs the tests' CA. Included by the root Makefile, which gives BIN (the environment's
# programs) and STAMP (the target that prepares it).

.PHONY: gates gate-loom gate-miri gate-renewal

gates: gate-loom gate-miri gate-renewal ## all gates that are run by hand; each writes its page in docs/gates

gate-loom: $(STAMP) ## the crate's memory orderings in every interleaving, and weaker ones that must fail
	@$(BIN)/python -m tests.gates.loom

gate-miri: $(STAMP) ## the crate's tests under Miri (a nightly Rust), and undefined behaviour that it must find
	@$(BIN)/python -m tests.gates.miri

gate-renewal: pebble ## a certificate of five minutes renewed while 200 clients stream, and one cut stream that must be found
	@$(BIN)/python -m tests.gates.renewal
