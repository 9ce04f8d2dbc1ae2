# Nothing but make and Python 3.11, 3.12 or 3.13 is needed: each target builds what it uses.
#   make demo            one experiment on real data, with a report (minutes)
#   make test            the test suite;   make lint   ruff and mypy;   make wheel
#   make docs            the documentation site, in docs/_build/html; executes its notebooks
#   make ci              lint and tests on every interpreter here, the wheel and the site
#   make test PYTHON=python3.12           with another interpreter
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(VERSION)
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint wheel docs ci bench clean python-ok

demo: $(VENV)/.lab
	$(RUN)/divjax run bd_kd --preset demo

test: $(VENV)/.test
	$(RUN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.test
	$(RUN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.lint
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy

# Two builds must be one file, bit for bit; it holds the experiments too.
wheel: $(VENV)/.lab
	rm -rf dist && mkdir -p dist
	$(PIP) wheel --no-deps -w dist .
	$(PIP) wheel --no-deps -w dist/again .
	cmp dist/*.whl dist/again/*.whl && rm -r dist/again && ls -l dist

# From nothing each time; warnings are errors. Then its weight, and no request to another host.
docs: $(VENV)/.docs
	rm -rf docs/_build
	$(RUN)/sphinx-build -E -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	$(RUN)/python docs/weigh.py docs/_build/html

# What has to pass before a release, on every interpreter that runs here.
ci:
	for python in python3.11 python3.12 python3.13; do \
	  if $$python -c '' 2>/dev/null; then $(MAKE) lint test PYTHON=$$python || exit 1; \
	  else echo "$$python does not run here: skipped"; fi; done
	$(MAKE) wheel docs

bench: $(VENV)/.bench
	$(RUN)/python -m benchmarks $(ARGS)

# A stamp says which extra is installed; it is made anew when the requirements change.
$(VENV)/.%: pyproject.toml requirements/constraints.txt | $(VENV)/bin/python
	$(PIP) install -c requirements/constraints.txt -e '.[$(EXTRAS_$*)]'
	touch $@
EXTRAS_lab := lab
EXTRAS_test := lab,test
EXTRAS_lint := lab,test,lint
EXTRAS_bench := lab,test,bench
EXTRAS_docs := lab,docs

$(VENV)/bin/python: | python-ok
	$(PYTHON) -m venv $(VENV)

python-ok:
	@case "$(VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "divjax needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $${VERSION:-'$(VERSION)'}." \
	       "Say: make PYTHON=/path/to/python3.12" >&2; exit 1;; esac

clean:
	rm -rf .venv runs dist docs/_build docs/reports docs/project
