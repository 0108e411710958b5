# Two commands do everything on a machine that has Python 3.11+: `make train` and `make test`.
# Both make a virtual environment in .venv and install jaxdl into it.

PYTHON ?= python3
ARGS ?=

.PHONY: train test lint docs clean

train: .venv/installed
	.venv/bin/python launch.py --experiment=resnet_cifar --workdir=runs/resnet_cifar/first $(ARGS)

test: .venv/installed-test
	.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal $(ARGS)

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/pyright

# In one process: jax, which the reference imports, starts threads that a fork would lose.
docs: .venv/installed-docs
	.venv/bin/sphinx-build -c docs -d docs/_build/doctrees --fail-on-warning --keep-going \
		--nitpicky --quiet $(ARGS) . docs/_build/html
	@echo "the site is docs/_build/html/index.html"

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

.venv/installed-docs: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@ .venv/installed

clean:
	rm -rf .venv
