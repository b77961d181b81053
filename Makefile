# The commands of a contributor; CONTRIBUTING.md explains them. They use the virtual environment in .venv.
PYTHON = .venv/bin/python

.PHONY: setup quick test lint docs site messages bench matrix

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[test,lint,docs]'

# Everything that needs no server.
quick:
	$(PYTHON) -m pytest -q -m quick

# Everything; starts its own PostgreSQL, Valkey and receivers.
test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m django makemigrations --check --dry-run django_otel --settings tests.settings

# The generated parts of the documentation.
docs:
	$(PYTHON) docs/build_settings.py
	$(PYTHON) docs/build_readme.py
	$(PYTHON) docs/build_architecture.py

# The documentation site, in site/; a broken link is an error.
site:
	.venv/bin/mkdocs build --strict -q

# The texts of the code and templates into the catalogues, and these compiled; needs GNU gettext. Dates that change
# with every run are left out.
messages:
	cd django_otel && ../$(PYTHON) -m django makemessages -l de -l ar --add-location never --no-wrap --no-obsolete
	sed -i '/^"POT-Creation-Date:/d' django_otel/locale/*/LC_MESSAGES/django.po
	cd django_otel && ../$(PYTHON) -m django compilemessages

# Instructions per request against their targets; needs valgrind.
bench:
	$(PYTHON) benchmarks/instructions.py --check --requests 30 --layouts 6

# The quick tests on every Python that is installed, with each Django that it takes.
matrix:
	for version in 3.11 3.12 3.13 3.14; do \
	  command -v python$$version >/dev/null || continue; \
	  for django in 5.2 6.0 6.1; do \
	    python$$version -c "import sys; sys.exit('$$django' >= '6' and sys.version_info < (3, 12))" || continue; \
	    python$$version -m venv .venv-$$version-$$django && \
	    .venv-$$version-$$django/bin/pip install -q -e '.[test]' "django~=$$django.0" && \
	    .venv-$$version-$$django/bin/python -m pytest -q -m quick || exit 1; \
	  done; \
	done
