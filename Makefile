.DEFAULT_GOAL := help
# Another Python is another environment: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The number of parallel tests; most of them wait rather than compute.
JOBS ?= $(shell expr 2 '*' $$(nproc))
# pip takes package[extra] as another requirement than the package: locked without the extra that another
# package asks for, it counts as not locked, and is refused as soon as a newer release is out.
COMPILE := $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	--no-strip-extras --generate-hashes --custom-compile-command "make lock"

# The scripts of an environment hold its path, so in a directory that was moved or copied it is made anew.
IS_MOVED := $(filter-out $(CURDIR),$(shell cat $(VENV)/.installed 2>/dev/null))

# Megabytes for the environment and pip's temporary files.
INSTALL_MB := 200

.PHONY: $(if $(IS_MOVED),$(VENV)/.installed)
$(VENV)/.installed: requirements/base.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'make: $(PYTHON) is not Python 3.11 or later; install it, or name one: make $(or $(firstword $(MAKECMDGOALS)),run) PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) cannot make a virtual environment; on Debian: sudo apt-get install python3-venv'; exit 1; }
	@mkdir -p $(VENV) 2>/dev/null && test -w $(VENV) || \
		{ echo "make: $$PWD is read-only, or not yours; use a directory that you may write to"; exit 1; }
	@test "$$(df -Pk $(VENV) | awk 'NR == 2 {print int($$4 / 1024)}')" -ge $(INSTALL_MB) || \
		{ echo "make: less than $(INSTALL_MB) MB are free for $$PWD/$(VENV); free some space"; exit 1; }
	$(PYTHON) -m venv $(if $(IS_MOVED),--clear) $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/base.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	pwd -P > $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	touch $@

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.installed ## Make .venv with the locked dependencies

.PHONY: run
run: install ## Start the service on http://localhost:8080
	$(BIN)/astralog serve

.PHONY: tail
tail: install ## Follow new logs; TAIL="--level error" adds options
	@$(BIN)/astralog tail -f $(TAIL)

$(VENV)/.installed-clickhouse: $(VENV)/.installed requirements/clickhouse.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/clickhouse.lock
	touch $@

.PHONY: install-forward
install-forward: $(VENV)/.installed-clickhouse ## Add the dependencies of forward to .venv

.PHONY: forward
forward: install-forward ## Deliver sealed segments to ASTRALOG_CLICKHOUSE_URL
	$(BIN)/astralog forward

$(VENV)/.installed-sql: $(VENV)/.installed requirements/sql.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sql.lock
	touch $@

# In the environment, neither make nor the shell changes a query: $ and quotes stay.
sql: export QUERY := $(value SQL)

.PHONY: sql
sql: $(VENV)/.installed-sql ## Query all logs with DuckDB; SQL="SELECT count(*) FROM logs"
	@$(BIN)/astralog sql "$$QUERY"

# Hundreds of tests start the service, so its code is compiled first.
test test-quick: export PYTHONDONTWRITEBYTECODE =
# A third of a second per process: the plugins of trio and others, which no test uses.
test test-quick: export HYPOTHESIS_NO_PLUGINS = 1
# Tests that run make read its output, which -k or -j would change.
test test-quick: export MAKEFLAGS =

# Unit tests are short: xdist, which collects all tests in each process, took a fifth of their CPU. Their
# files, largest first, are divided among processes instead; $(1) is the number of shares.
UNIT_FILES := ls -S $$(find tests/unit -name 'test_*.py')
DIVIDE = awk '{n = NR % $(1); share[n] = share[n] " " $$0} END {for (n in share) print share[n]}'
RUN_SHARES := xargs -P $(JOBS) -L 1 $(BIN)/pytest -q -p no:xdist -p no:cacheprovider

.PHONY: test
test: $(VENV)/.installed-dev ## Run all tests
	$(UNIT_FILES) | $(call DIVIDE,$(JOBS)) | $(RUN_SHARES) -m "not alone"
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not alone" tests/functional
	$(BIN)/pytest -m alone $$(grep -rl --include='test_*.py' mark.alone tests)

# The tests that start the service are for one process, whose launcher alone imports its code again.
test-quick: export HYPOTHESIS_PROFILE = quick
# In memory, if a gigabyte of it is free: a sync takes no time there. make test writes to the disk.
test-quick: TESTS_TMP = $(shell df -Pk /dev/shm | awk 'NR == 2 && $$4 > 1000000 {print "-p /dev/shm"}')

.PHONY: test-quick
test-quick: $(VENV)/.installed-dev ## Run the unit tests, and one test of each feature of the service
	export TMPDIR=$$(mktemp -d $(TESTS_TMP)) && trap 'rm -rf "$$TMPDIR"' EXIT INT TERM && \
	(echo $$(grep -l mark.quick tests/functional/*.py) && \
	$(UNIT_FILES) | $(call DIVIDE,$(or $(filter-out 0,$(shell expr $(JOBS) - 1)),1))) | \
	$(RUN_SHARES) -m "not slow and not alone"

.PHONY: faults
faults: $(VENV)/.installed-dev ## Inject faults for half an hour, or SECONDS, and count lost logs
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(FAULTS)

.PHONY: mutants
mutants: $(VENV)/.installed-dev ## Remove guards from a copy of the code; a test must notice each
	$(BIN)/python -m tests.mutants $(MUTANTS)

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## Measure the line coverage of the unit tests
	$(BIN)/pytest --cov --cov-report=term-missing:skip-covered tests/unit

.PHONY: bench
bench: $(VENV)/.installed-dev ## Measure the service and write bench/results.*
	$(BIN)/python -m bench

# The revision may be the second word too: make bench-against ce92c37
ifeq ($(firstword $(MAKECMDGOALS)),bench-against)
REV ?= $(word 2,$(MAKECMDGOALS))
ifneq ($(word 2,$(MAKECMDGOALS)),)
.PHONY: $(word 2,$(MAKECMDGOALS))
$(word 2,$(MAKECMDGOALS)):
	@:
endif
endif

.PHONY: bench-against
bench-against: $(VENV)/.installed-dev ## Compare with REV in turns; fail if a row is over 3% worse
	$(if $(REV),,$(error which revision? make bench-against REV=HEAD~1))
	$(BIN)/python -m bench.against $(REV) $(AGAINST)

.PHONY: bench-client
bench-client: $(VENV)/.installed-dev ## Measure the cost of logging through the Python client
	PYTHONPATH=clients/python $(BIN)/python -m bench.python_client

.PHONY: check
check: $(VENV)/.installed-dev ## Lint; check format, spelling, types and that the lock files are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell . .github .ci
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --ini setup.cfg astralog clients wsgi.py gunicorn.conf.py
	# What is locked, and installed by its hashes, is all that setup.cfg asks for; nothing is fetched.
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --no-index --no-build-isolation '.[dev]'

.PHONY: audit
audit: ## Check the locked packages for known vulnerabilities; needs the internet
	python3 -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check pip-audit && \
	$(VENV)-audit/bin/pip-audit --strict --require-hashes --disable-pip \
		--requirement requirements/base.lock --requirement requirements/clickhouse.lock \
		--requirement requirements/sql.lock \
	|| { echo "make audit: something is vulnerable, or was SKIPPED, as without the internet; see above"; false; }

.PHONY: smoke
smoke: install ## Check a deployment from outside: make smoke URL=https://logs.example.com TOKEN=...
	@$(BIN)/astralog check $(SMOKE) $(or $(URL),http://localhost:8080)

.PHONY: token
token: ## Print a strong token for the tokens file
	@python3 -c 'import secrets; print(secrets.token_urlsafe(32))'

# The documented commands name the wheel by a pattern, and fail if an older one fits too.
.PHONY: wheel
wheel: install ## Build the wheel in dist/; `pip install` it, and `astralog serve` starts the service
	rm -f dist/astralog-*.whl
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

# Interpreters from 3.11 on, those of pyenv included, that test-wheel installs the wheel with.
WHEEL_PYTHONS ?= $(shell for p in $(addprefix $$HOME/.pyenv/versions/,3.1[1-9].*/bin/python3) \
	$(addprefix /usr/bin/python,3.11 3.12 3.13 3.14); do test -x $$p && echo $$p; done)

.PHONY: test-wheel
test-wheel: $(VENV)/.installed-dev ## Install the wheel on every Python of this machine; needs the internet
	WHEEL_PYTHONS="$(WHEEL_PYTHONS)" $(BIN)/pytest -rs -k every_python tests/functional/test_wheel.py

# A root directory of this Debian release, in which test-deb boots systemd; made when it is missing.
DEB_ROOT ?= /var/tmp/astralog-debian-root

# A bootstrap that ends early leaves no $(DEB_ROOT), which make would take for a whole one.
$(DEB_ROOT):
	rm -rf $@.part
	debootstrap --variant=minbase --include=systemd-sysv,dbus,python3 \
		$$(. /etc/os-release && echo $$VERSION_CODENAME) $@.part
	mv $@.part $@

.PHONY: test-deb
test-deb: deb $(VENV)/.installed-dev $(DEB_ROOT) ## Install, upgrade and remove the package in a container; as root
	DEB_ROOT=$(DEB_ROOT) $(BIN)/pytest -p no:cacheprovider -rs tests/functional/test_debian_package.py

.PHONY: deb
deb: ## Build dist/astralog_*.deb for the Debian release that this runs on
	deploy/debian/build

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: ## Lock the newest dependencies that setup.cfg allows, with their hashes
	python3 -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet --disable-pip-version-check uv
	echo 'setuptools >= 77' | $(COMPILE) --output-file requirements/base.lock setup.cfg -
	$(COMPILE) --extra dev --constraints requirements/base.lock --output-file requirements/dev.lock setup.cfg
	$(COMPILE) --extra clickhouse --constraints requirements/dev.lock \
		--output-file requirements/clickhouse.lock setup.cfg
	$(COMPILE) --extra sql --constraints requirements/dev.lock \
		--output-file requirements/sql.lock setup.cfg
	rm -rf $(VENV)-lock

.PHONY: clean
clean: ## Remove files of make and its tools; the data directory stays
	rm -rf $(VENV) $(VENV)-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
