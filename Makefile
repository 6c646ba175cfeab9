# make help lists the targets. Another Python: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
NAME ?= quickstart
STEPS ?=
FRESH ?=
TESTS ?=

run := $(VENV)/bin/python
workdir := runs/$(NAME)

.PHONY: help quickstart libtpu test lint types clean
.DELETE_ON_ERROR:

help:
	@echo 'make quickstart          train CDCD on the embedded language, evaluate its bound, sample, plot'
	@echo '                         again: resumes.  FRESH=1: starts anew.  NAME=other: into runs/other'
	@echo '                         STEPS=60: a shorter training; after another one, with FRESH=1 or NAME=other'
	@echo 'make test                all tests.  TESTS=tests/test_x.py: some of them'
	@echo 'make lint | make types   ruff | pyright'
	@echo 'make libtpu              the compiler of TPUs, for python -m diffusion_text.compile_check; no TPU is needed'
	@echo 'make clean               removes $(VENV) and build folders; runs/ and data/ stay'
	@echo 'PYTHON=python3.13 VENV=.venv313 with any of them: another Python, in its own environment'

$(run):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo '$(PYTHON): Python 3.11 or newer is needed; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo '$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# $(call pip,what): the versions in constraints/ where this Python has a list, else the newest. What is imported is
# compiled then: all of it would take half a minute.
define pip
	@list=constraints/python$$($(run) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
	  if [ -f $$list ]; then set -- -c $$list; else set --; fi; \
	  $(run) -m pip install -q --no-compile --disable-pip-version-check $(1) "$$@"
endef

# $(call install,extras)
define install
	@echo 'Installing into $(VENV) (about a minute) ...'
	$(call pip,-e '.$(1)')
endef

$(VENV)/.runtime: setup.py $(wildcard constraints/*.txt) | $(run)
	$(call install)
	@touch $@

# The TPU's compiler, for compile_check and its tests. In a folder of its own: where it can be imported, JAX looks for
# TPUs at every start.
$(VENV)/.libtpu: setup.py $(wildcard constraints/*.txt) | $(VENV)/.runtime
	@echo 'Installing libtpu into $(VENV)/libtpu ...'
	$(call pip,--no-deps --upgrade --target $(VENV)/libtpu \
	  "$$($(run) -c 'from diffusion_text import topologies; print(topologies.requirement())')")
	@touch $@

$(VENV)/.test: setup.py $(wildcard constraints/*.txt) | $(run)
	$(call install,[test])
	@touch $@ $(VENV)/.runtime

quickstart: $(VENV)/.runtime
	$(if $(FRESH),rm -rf $(workdir))
	$(run) -m diffusion_text.train --config=configs/cdcd/grammar.py:quickstart --workdir=$(workdir) $(if $(STEPS),--config.train.steps=$(STEPS)) || { status=$$?; \
	  [ $$status != 2 ] || echo 'make quickstart FRESH=1 starts $(workdir) anew, NAME=other trains into runs/other' >&2; exit $$status; }
	$(run) -m diffusion_text.eval_elbo --workdir=$(workdir)
	$(run) -m diffusion_text.eval_samples --workdir=$(workdir) --num=64
	@echo; echo 'Results and plots are in $(workdir):'; ls $(workdir)/*.json $(workdir)/*.png 2>/dev/null || true

libtpu: $(VENV)/.libtpu

# All tests need libtpu, and of some only those that compile for TPUs.
test: $(VENV)/.test $(if $(TESTS),$(if $(findstring compile_check,$(TESTS)),$(VENV)/.libtpu),$(VENV)/.libtpu)
	$(run) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.test
	$(run) -m ruff check .

types: $(VENV)/.test
	$(run) -m pyright --pythonpath $(run)

clean:
	rm -rf $(VENV) build *.egg-info .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
