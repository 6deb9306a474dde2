# `make quickstart` and `make test` work on a fresh machine with Python 3.11 or later, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --prefer-binary -c constraints.txt
PROJECT := setup.py settings.ini pyproject.toml constraints.txt

.PHONY: quickstart test book docs lint lab readme hooks clean help
help:
	@echo "make quickstart   fine-tune a real model on real news titles, from nothing"
	@echo "make test         everything that is checked before a change lands"
	@echo "make lab          open the notebooks in JupyterLab"
	@echo "make docs         build the site into _docs/"
	@echo "make book         run notebooks whose code has changed, at full size, and save their outputs"
	@echo "make readme       make README.md from nbs/index.ipynb"
	@echo "make lint         style, export and notebooks in order"
	@echo "make hooks        teach git to merge notebooks"

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or later is needed; say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(PROJECT)
	@echo "installing sftbook into $(VENV) ..."
	@$(INSTALL) "setuptools>=77" setuptools-scm wheel  # to build sftbook, and seqeval, which comes as source
	@$(INSTALL) torch
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what tests and docs need ..."
	@$(INSTALL) --no-build-isolation -e ".[dev,docs,zh,labels,onnx,serve,search]"
	@touch $@

quickstart: $(VENV)/installed
	@$(BIN)/sftbook fetch bbc-news
	@$(BIN)/sftbook fetch minilm
	@$(BIN)/sftbook train --data bbc-news --text title --output runs/news --overwrite

test: $(VENV)/installed-dev lint
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check --quiet .

book: $(VENV)/installed-dev
	@$(BIN)/python tools/book.py
	@$(BIN)/python tools/readme.py

readme: $(VENV)/installed-dev
	@$(BIN)/python tools/readme.py

docs: $(VENV)/installed-dev
	@$(BIN)/python tools/site.py --output _docs

lab: $(VENV)/installed-dev
	@$(BIN)/jupyter lab nbs

hooks: $(VENV)/installed-dev
	@$(BIN)/nbdev_install_hooks

clean:
	@rm -rf _docs _proc build runs
