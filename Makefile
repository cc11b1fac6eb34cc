# Settings may be given as `make run PORT=9100 DATA_ROOT=/srv/files`; all of them, with the prefix FILE_STORAGE_, are
# in README.md.  Paths in this file are relative, so that the folder may have any name.

SHORT_SETTINGS := PORT HOST DATA_ROOT DATABASE_URL REDIS_URL WORKERS MAX_UPLOAD_SIZE QUOTA LOG_LEVEL NGINX
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip -qq --disable-pip-version-check
NO_LIBRARIES = { echo 'error: the libraries cannot be installed: pip has to reach its package index, see above' >&2; \
    exit 1; }

# Only from the command line: PORT and HOST of the environment often mean something else.
define pass_on
ifeq ($$(origin $(1)),command line)
export FILE_STORAGE_$(1) := $$(value $(1))
endif
endef
$(foreach setting,$(SHORT_SETTINGS),$(eval $(call pass_on,$(setting))))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-faults soak bench mutants fuzz migrate lint lock clean docker-up docker-down

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

run: $(VENV)/installed ## start everything on http://127.0.0.1:9000 (PORT=, DATA_ROOT=); Ctrl-C ends it
	@exec $(PY) -m service run

test: $(VENV)/installed-dev ## run all tests, or those of T=path; JOBS=2: side by side
	@exec $(PY) -m pytest $(if $(JOBS),-n $(JOBS) --dist loadfile) $(T)

fuzz: $(VENV)/installed-dev ## for longer: requests that nobody wrote, and random lives of accounts (N=300 of each kind)
	@FUZZ_EXAMPLES=$(or $(N),300) exec $(PY) -m pytest --timeout 3600 -rA tests/suites tests/suites/timing.py tests/model

mutants: $(VENV)/installed-dev ## put known mistakes into the service, one by one, and show what catches each, as root
	@exec $(PY) -m pytest --timeout 3600 -q -p tests.mutants -o 'norecursedirs=.*' -m mutant tests

test-faults: $(VENV)/installed-dev ## power cuts, kills, full disks and the like, as root (T=path, ROUNDS=30: each so often)
	@ROUNDS='$(or $(ROUNDS),3)' MINUTES='$(MINUTES)' exec $(PY) -m pytest --timeout 3600 -q $(or $(T),tests/faults tests/suites/timing.py)

soak: $(VENV)/installed-dev ## mixed load for MINUTES=60, as root; something is killed every 20 s, then everything is compared
	@exec $(PY) -m tests.faults.soak --minutes $(or $(MINUTES),60)

bench: $(VENV)/installed-dev ## measure beside plain nginx and rivals (ROWS=hot,put FULL=1 AGAINST=checkout ACCEPT=1)
	@exec $(PY) -m tests.bench $(if $(FULL),--full) $(if $(ROWS),--rows '$(ROWS)') \
	    $(if $(AGAINST),--against '$(AGAINST)') $(if $(ACCEPT),--accept)

migrate: $(VENV)/installed ## bring the database to the current schema (ARGS=--list, ARGS='--rollback 1')
	@exec $(PY) -m service migrate $(ARGS)

lint: $(VENV)/installed-dev ## check style (flake8), types (mypy --strict) and who may import whom
	$(PY) -m flake8
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

docker-up: ## start everything in containers on http://127.0.0.1:9000 (PORT=)
	@docker compose -f docker/compose.yaml up -d --build --wait

docker-down: ## end the containers; the data stays
	@docker compose -f docker/compose.yaml down

lock: $(VENV)/venv ## choose the versions of all libraries again
	$(PIP) install uv
	for extra in '' dev; do \
	    $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	        --custom-compile-command 'make lock' $${extra:+--extra dev --constraint requirements.txt} \
	        pyproject.toml --output-file requirements$${extra:+-dev}.txt || exit; \
	done

clean: ## remove what make made; the data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find service tests -name __pycache__ -exec rm -rf {} +

$(VENV)/installed: requirements.txt $(VENV)/venv
	@echo 'Installing libraries ...' >&2
	@$(PIP) install --require-hashes --only-binary :all: -r requirements.txt || $(NO_LIBRARIES)
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements.txt $(VENV)/venv
	@echo 'Installing libraries and what the tests need ...' >&2
	@$(PIP) install --require-hashes --only-binary :all: -r requirements-dev.txt || $(NO_LIBRARIES)
	@touch $(VENV)/installed $@

# A virtual environment whose Python is gone (the system got another one) is made again.
ifeq ($(shell { $(PY) -c 'print(1)'; } 2>/dev/null),1)
$(VENV)/venv:
else
.PHONY: $(VENV)/venv
$(VENV)/venv:
endif
	@for python in python3 python3.14 python3.13 python3.12 python3.11 ''; do \
	    $${python:-false} -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done; \
	if [ -z "$$python" ]; then \
	    echo 'error: this needs Python 3.11 or newer as python3; install it with the package manager' >&2; exit 1; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	    package=$$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing $$package ..." >&2; \
	        { apt-get -qq install -y "$$package" || { apt-get -qq update && apt-get -qq install -y "$$package"; }; } \
	            >/dev/null 2>&1; \
	    fi; \
	    $$python -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "error: $$python cannot make virtual environments; install the package $$package" >&2; exit 1; }; \
	fi; \
	rm -rf $(VENV) && $$python -m venv $(VENV) && touch $@
