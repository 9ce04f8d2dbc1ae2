# Nothing but make and Python 3.11, 3.12 or 3.13 is needed: each target builds what it uses.
#   make demo            one experiment on real data, with a report (minutes)
#   make test            the test suite;   make lint   ruff and mypy
#   make test PYTHON=python3.12           with another interpreter
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(VERSION)
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt

.PHONY: demo test test-slow lint bench clean python-ok

demo: $(VENV)/.lab
	$(RUN)/divjax run bd_kd --preset demo

test: $(VENV)/.test
	$(RUN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.test
	$(RUN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.lint
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy

bench: $(VENV)/.bench
	$(RUN)/python -m benchmarks $(ARGS)

# A stamp says which extra is installed; it is made anew when the requirements change.
$(VENV)/.%: pyproject.toml requirements/constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[$(EXTRAS_$*)]'
	touch $@
EXTRAS_lab := lab
EXTRAS_test := lab,test
EXTRAS_lint := lab,test,lint
EXTRAS_bench := lab,test,bench

$(VENV)/bin/python: | python-ok
	$(PYTHON) -m venv $(VENV)

python-ok:
	@case "$(VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "divjax needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $${VERSION:-'$(VERSION)'}." \
	       "Say: make PYTHON=/path/to/python3.12" >&2; exit 1;; esac

clean:
	rm -rf .venv runs
