"""docs/settings.md is made from the table of settings, and is current."""

from __future__ import annotations

import importlib.util
import re

from django_otel.config.parse import parse
from django_otel.config.schema import Config, walk
from django_otel.operations import checks
from tests.services import ROOT


def load_builder():
    spec = importlib.util.spec_from_file_location("build_settings", ROOT / "docs" / "build_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current():
    """Run `python docs/build_settings.py` after a change of the settings."""
    builder = load_builder()
    assert builder.PAGE.read_text() == builder.build()


def test_every_key_is_documented_with_a_meaning():
    """One row for each, and none is empty."""
    rows = re.findall(r"^\| `([A-Z_.]+)` \| `.*` \| .*? ?\| (.+) \|$", load_builder().build(), re.MULTILINE)
    assert [dotted for dotted, _ in rows] == [dotted for dotted, _ in walk(Config)]
    assert all(len(meaning) > 8 for _, meaning in rows)


def test_every_variable_on_the_page_is_one_that_is_read():
    """A variable set to nonsense is either used or warned about."""
    builder = load_builder()
    for dotted, variables in builder._find_variables().items():
        assert dotted in {found for found, _ in walk(Config)}
        for variable in variables:
            if variable in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER_ARG", "OTEL_EXPORTER_OTLP_PROTOCOL"):
                continue
            config = parse({}, {variable: "=nonsense:"})
            assert config.warnings or any(variable in source for source in config.sources.values()), variable


def test_every_check_is_on_the_page():
    """Id by id."""
    folders = (ROOT / "django_otel" / package for package in ("config", "operations"))
    sources = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    source = "".join(sources)
    used = set(re.findall(r"django_otel\.([EW]\d{3})", source))
    assert used == set(re.findall(r"^\| `([EW]\d{3})`", load_builder().build(), re.MULTILINE))
    assert checks.MIDDLEWARE
