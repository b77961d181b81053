# The commands of a contributor; CONTRIBUTING.md explains them. They use the virtual environment in .venv.
PYTHON = .venv/bin/python

.PHONY: setup quick test coverage lint docs pictures site messages bench matrix release-check

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[test,lint,docs]'

# What needs no server and little time.
quick:
	$(PYTHON) -m pytest -q -m quick

# Everything; starts its own PostgreSQL, Valkey and receivers.
test:
	$(PYTHON) -m pytest

# The tests with each of their processes measured, and what they leave out; fails below `fail_under` in pyproject.toml.
MEASURED = COVERAGE_FILE=$(CURDIR)/.coverage-data/run
coverage:
	rm -rf .coverage-data
	$(MEASURED) COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(PYTHON) -m pytest
	$(MEASURED) $(PYTHON) -m coverage combine -q
	$(MEASURED) $(PYTHON) docs/build_coverage.py --write
	$(MEASURED) $(PYTHON) -m coverage report

lint:
	.venv/bin/codespell
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m django makemigrations --check --dry-run django_otel --settings tests.settings

# The generated parts of the documentation.
docs:
	$(PYTHON) docs/build_settings.py
	$(PYTHON) docs/build_readme.py
	$(PYTHON) deploy/stack/generated.py
	$(PYTHON) docs/build_architecture.py

# The pictures of README and docs, taken of the demo by its tests; needs Chromium.
pictures:
	DJANGO_OTEL_PICTURES=docs/images $(PYTHON) -m pytest -n 0 -q -p no:randomly tests/project/test_pictures.py

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
	$(PYTHON) benchmarks/instructions.py --check --requests 100 --layouts 6

# The quick tests on every Python that is installed, with each Django and OpenTelemetry that it takes; the rows go into
# docs/matrix.md.
matrix:
	$(PYTHON) tests/matrix.py --write

# The files of a release: built in an empty environment, complete, with a description that the index can show, and
# installed into another empty environment, where the command starts.
release-check:
	rm -rf dist build/release
	python3 -m venv build/release
	build/release/bin/pip install -q build twine
	build/release/bin/python -m build -q
	build/release/bin/twine check --strict dist/*
	build/release/bin/pip install -q dist/*.whl
	build/release/bin/python -m pip check
	build/release/bin/python -I -c "import django; from django.conf import settings; \
	  settings.configure(INSTALLED_APPS=['django.contrib.auth', 'django.contrib.contenttypes', 'django_otel'], \
	    MIDDLEWARE=['django_otel.middleware.OTelMiddleware'], OTEL={'SERVICE_NAME': 'release'}); django.setup(); \
	  import django_otel; print(django_otel.__version__, django_otel.__file__)"
