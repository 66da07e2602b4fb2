# The benches: see benches/README.md. BENCH_ROUNDS makes the comparison with nginx longer, and steadier.
BENCH_ROUNDS ?= 7

.PHONY: bench bench-steps bench-nginx

bench: bench-steps bench-nginx ## the cost of single steps, then CPU and memory beside nginx (a gate)

bench-steps: $(STAMP)
	@$(BIN)/python -m pytest benches --benchmark-only --benchmark-max-time=0.3 --benchmark-warmup=off \
		--benchmark-disable-gc --benchmark-columns=min,median,mean,rounds -q

bench-nginx: $(STAMP)
	@$(BIN)/python -m benches.nginx_ratio --rounds $(BENCH_ROUNDS) $(if $(CI),,--optional)
