# `make demo`, `make test` and `make lint` set up .venv themselves; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready
# The WebUIs' versions of gradio, each for a page of its own: only of use to a browser.
PAGES := $(if $(shell command -v chromium),.venv-gradio3/.ready .venv-gradio4/.ready)

.PHONY: demo test lint clean

demo: $(STAMP)
	$(VENV)/bin/python -m lab.demo

test: $(STAMP) $(PAGES)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .

$(STAMP): requirements-dev.txt lab/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(STAMP)

.venv-gradio%/.ready: tests/page/gradio%.txt
	$(PYTHON) -m venv .venv-gradio$*
	.venv-gradio$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

clean:
	rm -rf $(VENV) .venv-gradio3 .venv-gradio4
