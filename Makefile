# Everything runs in a ComfyUI that is made on first use and kept in ~/.cache/realisr (see dev/host_env.py),
# or in your own: make test COMFYUI_PATH=/path/to/ComfyUI
PYTHON ?= python3
HOST := $(PYTHON) dev/host_env.py run --
ARGS ?=
N ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-hostile test-parity soak lint apps arrange thumbnails workflows locales bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make the ComfyUI that demo and test share (done by them when needed)
	$(PYTHON) dev/host_env.py setup

demo: ## restore a degraded photo with the bundled model through a headless ComfyUI
	$(PYTHON) dev/host_env.py run --extra demo -- scripts/demo.py $(ARGS)

test: lint ## lint, type check and the whole test suite; ARGS="-k name" for a part of it
	$(HOST) -m pytest $(ARGS)

test-fast: ## the tests that need no server and no browser and are not marked slow, without the attacks of tests/hostile
	$(HOST) -m pytest --ignore=tests/hostile -m "not e2e and not browser and not slow" $(ARGS)

test-hostile: ## damaged files, odd pictures and inputs: N=5000 draws as many of each instead of a few
	REALISR_ATTACKS=$(N) $(HOST) -m pytest tests/hostile --timeout 0 $(ARGS)

soak: ## runs, failures and cancels of every method on one server: N=300 of each method
	$(HOST) benchmarks/soak.py $(if $(N),--runs $(N)) $(ARGS)

test-parity: ## the golden tensor tests; REALISR_GOLDEN=DIR runs them on another folder of that format
	$(HOST) -m pytest tests/parity $(ARGS)

lint: ## ruff and mypy
	$(HOST) dev/lint.py

arrange: ## lay out workflows/*.json anew, after changing a node's size or drawing a workflow
	$(HOST) dev/arrange_workflows.py $(ARGS)

apps: ## write the templates that open as an app, from the graphs they show
	$(HOST) dev/make_apps.py

thumbnails: ## draw the pictures of the template gallery
	$(HOST) dev/make_thumbnails.py

workflows: ## write workflows/api/*.json from workflows/*.json with the real frontend
	$(HOST) dev/export_workflows.py $(ARGS)

locales: ## write locales/en from the node schemas, after changing a text
	$(HOST) dev/export_locale.py

bench: ## the benchmarks, one after the other
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(HOST) $$script || exit 1; done

clean: ## remove what runs leave in the checkout (the host stays; `python3 dev/host_env.py prune` for old ones)
	rm -rf .mypy_cache .pytest_cache .ruff_cache demo_output test_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
