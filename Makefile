# Everything runs in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install reproduce-quick reproduce-all docs test test-all test-lowest soak lint audit clean

install: .venv/installed

# First the reasons why a fresh machine cannot install, each in one sentence. A .venv that is unfinished, because an install was
# interrupted, or that has another Python is made anew.
.venv/installed: pyproject.toml requirements.txt
	@stop() { echo "make install: $$*" >&2; exit 1; }; \
	version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
		stop "$(PYTHON) does not run; install Python 3.11 or newer, or name another: make install PYTHON=python3.12"; \
	case $$version in \
		[0-2].* | 3.[0-9] | 3.10) \
			stop "$(PYTHON) is Python $$version, but wnrepro needs 3.11 or newer; name another: make install PYTHON=python3.12" ;; \
		3.1[1-3]) ;; \
		*) echo "make install: requirements.txt is made for Python 3.11 to 3.13, and $(PYTHON) is $$version;" \
			"if pip finds no package for it, name another: make install PYTHON=python3.13" >&2 ;; \
	esac; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		stop "$(PYTHON) lacks the module ensurepip; on Debian and Ubuntu install it first: apt install python$$version-venv"; \
	echo "Installing $$(grep -c '^[a-z].*==' requirements.txt) packages into .venv: on Linux about 3 GB to download and 7 GB on disk. This takes minutes."; \
	[ -e $@ ] && [ -x .venv/bin/python$$version ] && clear= || clear=--clear; \
	rm -f $@; $(PYTHON) -m venv $$clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@said=$$($(BIN)/wnrepro doctor | grep -E "^problem|packages:|torch:|gpu:") || exit 1; \
	echo "$$said"; \
	if echo "$$said" | grep -q ^problem; then echo "Installed, but with problems: .venv/bin/wnrepro doctor says how to fix them."; \
	else echo "Ready: make reproduce-quick. For single commands: source .venv/bin/activate, then wnrepro --help."; fi
	@touch $@

# Minutes on two CPU cores, without any download of data. Its numbers mean nothing beside the paper's.
reproduce-quick: install
	$(BIN)/wnrepro reproduce --scale quick

# The whole of the paper, on GPUs; docs/grid.md says how on several, and on a cluster.
reproduce-all: install
	$(BIN)/wnrepro reproduce

# Everything that is generated: docs/cli.md and docs/cli/, the published report, the results in the README, docs/results.md,
# and the pages of docs/ whose templates are in wnrepro/report/pages.
docs: install
	$(BIN)/python -m wnrepro.tools.cli_pages
	$(BIN)/wnrepro report --published --readme

# The fast tier: minutes on two cores.
test: install
	$(BIN)/pytest -n 2 -m "not slow" --few

test-all: install
	$(BIN)/pytest -n 2

# The tests of what is compiled, captured and computed, or those of TESTS, with the lowest torch that pyproject.toml allows;
# everything else is that of .venv.
TESTS := tests/parameterization tests/experiments tests/test_optim.py tests/test_compiling.py tests/test_cuda_graphs.py tests/test_lockstep.py
LOWEST := .venv-lowest/bin

test-lowest: .venv-lowest/installed
	$(LOWEST)/python -m pytest $(TESTS)

.venv-lowest/installed: .venv/installed tests/requirements-lowest.txt
	$(BIN)/python -m venv --without-pip .venv-lowest
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
