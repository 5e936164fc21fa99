# Everything runs in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install reproduce-quick reproduce-all picture test lint clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Minutes on two CPU cores, without any download of data. Its numbers mean nothing beside the paper's.
reproduce-quick: install
	$(BIN)/wnrepro reproduce --scale quick
	$(BIN)/wnrepro report --scale quick

# The whole of the paper, on GPUs; README says how on several, and on a cluster.
reproduce-all: install
	$(BIN)/wnrepro reproduce
	$(BIN)/wnrepro report --scale paper

# The page of scale short, and the picture of its top in the README. Needs Debian's chromium.
picture: install
	$(BIN)/wnrepro report --scale short
	chromium --headless --hide-scrollbars $(if $(filter 0,$(shell id -u)),--no-sandbox) --disable-lcd-text --window-size=1200,1325 \
		--screenshot=results/short/report.png "file://$(CURDIR)/results/short/report.html"

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist results/quick .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
