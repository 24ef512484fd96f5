# `make demo`, `make test` and `make lint` set up .venv themselves; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(STAMP)
	$(VENV)/bin/python -m lab.demo

test: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .

$(STAMP): requirements-dev.txt lab/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(STAMP)

clean:
	rm -rf $(VENV)
