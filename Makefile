# Everything runs in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install reproduce-quick reproduce-all picture test test-all test-lowest soak lint audit clean

install: .venv/installed

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Minutes on two CPU cores, without any download of data. Its numbers mean nothing beside the paper's.
reproduce-quick: install
	$(BIN)/wnrepro reproduce --scale quick

# The whole of the paper, on GPUs; docs/grid.md says how on several, and on a cluster.
reproduce-all: install
	$(BIN)/wnrepro reproduce

# The page of scale short, and the picture of its top in the README. Needs Debian's chromium.
picture: install
	$(BIN)/wnrepro report --published --scale short
	chromium --headless --hide-scrollbars $(if $(filter 0,$(shell id -u)),--no-sandbox) --disable-lcd-text --window-size=1200,1325 \
		--screenshot=results/published/short/report.png "file://$(CURDIR)/results/published/short/report.html"

# The fast tier: minutes on two cores.
test: install
	$(BIN)/pytest -n 2 -m "not slow" --few

test-all: install
	$(BIN)/pytest -n 2

# The tests of what is compiled, captured and computed, or those of TESTS, with the lowest torch that pyproject.toml allows;
# everything else is that of .venv.
TESTS := tests/parameterization tests/experiments tests/test_optim.py tests/test_compiling.py tests/test_cuda_graphs.py
LOWEST := .venv-lowest/bin

test-lowest: .venv-lowest/installed
	$(LOWEST)/python -m pytest $(TESTS)

.venv-lowest/installed: .venv/installed tests/requirements-lowest.txt
	$(PYTHON) -m venv --without-pip .venv-lowest
	$(BIN)/pip --python $(LOWEST)/python install --quiet --disable-pip-version-check --require-hashes --no-deps \
		--requirement tests/requirements-lowest.txt
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> $$($(LOWEST)/python -c "import site; print(site.getsitepackages()[0])")/rest.pth
	$(BIN)/pip --python $(LOWEST)/python install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# The tests of robustness, with as many tries as docs/log/robustness.md reports: hours.
soak: install
	$(BIN)/pytest --soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/codespell

# Known vulnerabilities of what requirements.txt pins. It needs PyPI itself: many mirrors serve no such data.
audit: install
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt --progress-spinner off || \
		{ echo "make audit: a pin is vulnerable or could not be looked up, see above; run it where PyPI can be reached." >&2; exit 1; }

clean:
	rm -rf .venv .venv-lowest build dist results/quick .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
