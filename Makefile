# The two commands of a fresh machine: `make serve` and `make test`. Both set up .venv first.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11
DATA ?= ../shared/data
# Another checkout that `make bench` compares with.
AGAINST ?=
# Where the load test puts the virtual environments of the servers that it compares with.
PEERS ?= .peers
# Where pip finds torch beside its usual index; empty: only there. A Linux machine that reaches the usual index alone gets
# the build with CUDA, gigabytes of it.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_OPTIONS := -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Processes that run tests at a time. Each takes whole files, the dearest first (tests/conftest.py), and all share the models.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: serve test test-slow test-all format lint types tests fuzz loadtest evaluate bench holes estimator density adbench cells bad-cells tables verdicts selftest feedback console groups images filter freeze bundled pictures docs sbom audit fresh image-test clean

serve: $(VENV)/serve.done
	$(BIN)/vouch serve

test: format lint types tests

test-slow: $(VENV)/test.done ## the tests that `make test` leaves out
	$(PYTEST) -m slow

test-all: test test-slow     ## what CI runs

format: $(VENV)/test.done
	$(BIN)/ruff format --check .

lint: $(VENV)/test.done
	$(BIN)/ruff check .

types: $(VENV)/test.done
	$(BIN)/mypy

tests: $(VENV)/test.done
	$(PYTEST) -m "not slow"

fuzz: $(VENV)/test.done      ## thousands of requests of every kind, made from the OpenAPI document
	FUZZ_EXAMPLES=400 $(BIN)/python -m pytest tests/web/test_fuzz.py -s

loadtest: $(VENV)/test.done  ## half an hour: beside other model servers, and beyond what it can bear; makes their environments
	cd benchmarks && ../$(BIN)/python -m load --venvs $(PEERS)

attack: $(VENV)/test.done    ## ten minutes: bodies that are made to cost much, eight clients at a time, beside a prober
	cd benchmarks && ../$(BIN)/python -m load --only attack

# What follows needs the real data, in the folder DATA.

evaluate: $(VENV)/test.done  ## the bundled models on test digits and on images of other things
	$(BIN)/python scripts/evaluate.py --data $(DATA)

bench: $(VENV)/test.done     ## speed, beside the bare matrix products; with AGAINST, beside another checkout
	$(BIN)/python benchmarks/score.py $(if $(AGAINST),--against $(AGAINST))

holes: $(VENV)/test.done     ## what a new pattern of missing cells costs
	$(BIN)/python benchmarks/holes.py

estimator: $(VENV)/test.done ## an hour: how right the estimates of log p(x) are, beside references; trains what it needs
	$(BIN)/python benchmarks/estimator.py --latents 2 --latents 8 --latents 20 --latents 50 --data $(DATA)

density: $(VENV)/test.done   ## half an hour of training on the fixed binarization, and its test log-likelihood
	$(BIN)/python benchmarks/density.py --data $(DATA)

adbench: $(VENV)/bench.done  ## hours: VAEDetector beside other detectors on 22 sets of ADBench and 40 of OddBench
	$(BIN)/python benchmarks/adbench.py --data $(DATA) --out adbench.jsonl
	$(BIN)/python benchmarks/adbench.py --out adbench.jsonl --report
	$(BIN)/python benchmarks/adbench.py --data $(DATA) --part oddbench --seeds 1 --out oddbench.jsonl
	$(BIN)/python benchmarks/adbench.py --out oddbench.jsonl --report

cells: $(VENV)/test.done     ## an hour: which cell is wrong, and rows with missing cells, beside simpler ways
	$(BIN)/python benchmarks/cells.py --data $(DATA)

bad-cells: $(VENV)/test.done ## an hour: what bad cells, holes and repeated rows do to verdicts; every promise measured
	$(BIN)/python benchmarks/bad_cells.py --data $(DATA)

tables: $(VENV)/test.done    ## five minutes: a CSV file of a million rows, understood beside pandas, and trained on
	$(BIN)/python benchmarks/tables.py

verdicts: $(VENV)/test.done  ## half an hour: what verdicts promise and what they catch; `pictures` draws some of it
	$(BIN)/python benchmarks/verdicts.py --data $(DATA)

selftest: $(VENV)/test.done  ## two hours: are published self-tests honest, what is caught of spoilt rows, which weights are chosen
	$(BIN)/python benchmarks/selftest.py
	$(BIN)/python benchmarks/spoilt.py --data $(DATA)
	$(BIN)/python benchmarks/weighing.py --data $(DATA)
	$(BIN)/python benchmarks/weighing.py --report

feedback: $(VENV)/test.done  ## ten minutes: five rounds of answers with wrong labels, and a hundred kills of a service with a journal
	$(BIN)/python benchmarks/feedback.py
	$(BIN)/python benchmarks/feedback.py --rule band --seed 1
	cd benchmarks && ../$(BIN)/python -m load --only journal --only journal-kills

console: $(VENV)/test.done   ## how quick the console is, in Debian's chromium, and its pictures for the docs
	$(BIN)/python benchmarks/console.py
	$(BIN)/python scripts/console_pictures.py

groups: $(VENV)/test.done    ## ten minutes: what each group of adult is promised, and gets, with --by and without
	$(BIN)/python benchmarks/groups.py --data $(DATA)

images: $(VENV)/test.done    ## three hours: cracks, bits per pixel, classes, faults of parts, and what a score costs
	for part in concrete density one-class; do $(BIN)/python benchmarks/images.py $$part --data $(DATA)/images || exit 1; done
	for part in parts promise cost; do $(BIN)/python benchmarks/images.py $$part || exit 1; done
	$(BIN)/python benchmarks/images.py audit --data $(DATA)/images

filter: $(VENV)/test.done    ## an hour: whole data sets, beside the bare Scorer, by Ray, killed, and what --fdr holds
	for part in speed workers kills fdr; do $(BIN)/python benchmarks/filter.py --part $$part || exit 1; done
	$(BIN)/python benchmarks/data_parallel.py --data $(DATA)

freeze: $(VENV)/test.done    ## record anew what tests/test_frozen.py compares with: only after a deliberate change
	$(BIN)/python scripts/freeze.py

bundled: $(VENV)/test.done   ## train the bundled models anew, as new versions
	$(BIN)/python scripts/train_bundled.py mnist mnist-2d adult parts --data $(DATA)

pictures: $(VENV)/test.done  ## the pictures of the README and the docs
	$(BIN)/python scripts/pictures.py --data $(DATA)

docs: $(VENV)/test.done      ## the site, in build/site
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

sbom: $(VENV)/release.done   ## build/sbom.json: CycloneDX, of what the image installs
	rm -rf build/image-venv && $(PYTHON) -m venv build/image-venv
	build/image-venv/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) .
	build/image-venv/bin/python -m pip --disable-pip-version-check uninstall -q -y pip setuptools
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json build/image-venv/bin/python
	rm -rf build/image-venv

audit: $(VENV)/release.done  ## known vulnerabilities of the versions in constraints.txt
	$(BIN)/python scripts/audit.py

fresh: ## the two commands above on a fresh machine, in a chroot; as root, on Debian
	scripts/fresh-machine-test

image-test: ## build, look into, run and stop the image, without an engine; as root, on Debian
	scripts/image-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install $(PIP_OPTIONS) -e .
	touch $@

$(VENV)/test.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install $(PIP_OPTIONS) -e '.[dev]'
	touch $@ $(VENV)/serve.done

$(VENV)/release.done: $(VENV)/test.done
	$(PIP) install $(PIP_OPTIONS) -e '.[release]'
	touch $@

$(VENV)/bench.done: $(VENV)/test.done
	$(PIP) install $(PIP_OPTIONS) -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
