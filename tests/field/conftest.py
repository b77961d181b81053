"""Tests of this folder carry the marker `field`, and are skipped unless DJANGO_OTEL_FIELD=1."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.field)
            if os.environ.get("DJANGO_OTEL_FIELD") != "1":
                item.add_marker(pytest.mark.skip(reason="field: set DJANGO_OTEL_FIELD=1"))
