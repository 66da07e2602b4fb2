# The gates of the native crate, apart from `make test` because they take minutes and one needs a nightly Rust. Included by
# the root Makefile, which gives BIN (the environment's programs) and STAMP (the target that prepares it).

.PHONY: gates gate-loom gate-miri

gates: gate-loom gate-miri ## all gates that are run by hand; each writes its page in docs/gates

gate-loom: $(STAMP) ## the crate's memory orderings in every interleaving, and weaker ones that must fail
	@$(BIN)/python -m tests.gates.loom

gate-miri: $(STAMP) ## the crate's tests under Miri (a nightly Rust), and undefined behaviour that it must find
	@$(BIN)/python -m tests.gates.miri
