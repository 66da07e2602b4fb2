# The benches: see benches/README.md.
.PHONY: bench bench-nginx

bench: $(STAMP) ## the cost of single steps; fails on errors only
	@$(BIN)/python -m pytest benches --benchmark-only --benchmark-max-time=0.3 --benchmark-warmup=off --benchmark-disable-gc -q

bench-nginx: $(STAMP) ## CPU per request beside nginx, memory of a worker: a gate
	@$(BIN)/python -m benches.nginx_ratio
