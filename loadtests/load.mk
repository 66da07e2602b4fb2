# The load tests: see loadtests/run.py. LOAD_MINUTES and LOAD_RUNS shorten or lengthen them.
LOAD_MINUTES ?= 2
LOAD_RUNS ?= 7

.PHONY: load load-web

load: $(STAMP) ## 100 streams a minute, then restarts and reloads under load; every answer compared
	@$(BIN)/python -m loadtests.run --minutes $(LOAD_MINUTES) --runs $(LOAD_RUNS)

load-web: $(STAMP) ## the same load from locust's web page
	@$(BIN)/python -m loadtests.run --web
