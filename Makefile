# Everything runs in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
LEARNING_RATES := 0.0003 0.001 0.003 0.01
SEEDS := 1 2 3

.PHONY: install reproduce-quick reproduce-all picture test lint clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Minutes on two CPU cores, without any download of data. Its numbers mean nothing beside the paper's.
reproduce-quick: install
	$(BIN)/wnrepro cifar --param all --scale quick
	$(BIN)/wnrepro cvae --dataset mnist --param all --scale quick
	$(BIN)/wnrepro cvae --dataset cifar10 --param all --scale quick
	$(BIN)/wnrepro draw --param all --scale quick
	$(BIN)/wnrepro dqn --game space_invaders --param all --scale quick
	$(BIN)/wnrepro report --scale quick

# The paper's settings, on a GPU: the classifier at every learning rate of the paper's search, the others by seed.
reproduce-all: install
	for lr in $(LEARNING_RATES); do $(BIN)/wnrepro cifar --param all --lr $$lr || exit; done
	for seed in $(SEEDS); do $(BIN)/wnrepro cvae --dataset mnist --param all --seed $$seed || exit; done
	for seed in $(SEEDS); do $(BIN)/wnrepro cvae --dataset cifar10 --param all --seed $$seed || exit; done
	for seed in $(SEEDS); do $(BIN)/wnrepro draw --param all --seed $$seed || exit; done
	for seed in $(SEEDS); do $(BIN)/wnrepro dqn --game all --param all --seed $$seed || exit; done
	$(BIN)/wnrepro report --scale paper

# The page of scale short, and the picture of its top in the README. Needs Debian's chromium.
picture: install
	$(BIN)/wnrepro report --scale short
	chromium --headless --hide-scrollbars $(if $(filter 0,$(shell id -u)),--no-sandbox) --disable-lcd-text --window-size=1200,1290 \
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
