# The official OpenAI client for Node, for tests/clients: installed once from its lock into a folder that git ignores.
# Included by the root Makefile. Without Node these tests are named as left out, which in CI is a failure.

NODE_CLIENT := .build/node
NODE_LOCK := tests/clients/node/package.json tests/clients/node/package-lock.json

.PHONY: node-client

node-client: ## the official Node client, which tests/clients drives (needs Node 20 and npm)
	@if ! node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2>/dev/null || ! npm --version >/dev/null 2>&1; then \
		if [ -n "$$CI" ]; then echo "failed: Node 20 and npm are not on PATH, so the tests with the Node client could not run"; exit 1; fi; \
		echo "left out: Node 20 and npm are not on PATH, so the tests with the official Node client do not run"; \
	else $(MAKE) --silent --no-print-directory $(NODE_CLIENT)/.ready; fi

$(NODE_CLIENT)/.ready: $(NODE_LOCK)
	@echo "  official Node client …"
	@rm -rf $(NODE_CLIENT) && mkdir -p $(NODE_CLIENT) && cp $(NODE_LOCK) $(NODE_CLIENT)
	@cd $(NODE_CLIENT) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >npm.log 2>&1 \
		|| { cat npm.log; echo "failed: npm could not install the Node client that tests/clients drives"; exit 1; }
	@touch $@
