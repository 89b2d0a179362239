# make demo: the main job on embedded data.  make test: everything set up, the tests pass.  make docs: the site.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint format docs

demo: $(READY)
	$(BIN)/qmimic train recipes/demo.yaml

test: $(READY)
	$(BIN)/pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python tools/house.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d site/.doctrees docs site
	@echo "The site: site/index.html"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@
