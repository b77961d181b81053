"""A part is imported when its library or a setting asks for it, and then follows the settings like any other."""

from __future__ import annotations

import importlib
import sys

import pytest

from django_otel.base import guard
from django_otel.config.parse import parse
from django_otel.instrumentation.late_parts import LatePart

PART, LIBRARY = "part_of_this_test", "library_of_this_test"
SOURCE = """
calls = []
def install(config):
    calls.append(config.runtime)
def uninstall():
    calls.append("off")
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules that can be imported and are not: a part, and the library it is for."""
    (tmp_path / f"{PART}.py").write_text(SOURCE)
    (tmp_path / f"{LIBRARY}.py").write_text(f"import sys\nwas_there = {PART!r} in sys.modules\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in (PART, LIBRARY):
        sys.modules.pop(name, None)


def config(**given):
    return parse(given, {})


def calls():
    return sys.modules[PART].calls


def test_a_part_is_installed_with_the_settings_of_now_once_its_library_is_imported(modules):
    part = LatePart(PART, "no_such_library", LIBRARY)
    part.install(config())
    part.install(config(RUNTIME=False))
    assert PART not in sys.modules
    assert importlib.import_module(LIBRARY).was_there is False
    assert calls() == [False]
    part.install(config())
    assert calls() == [False, True]
    part.uninstall()
    assert calls() == [False, True, "off"]


def test_a_library_that_is_there_already_needs_no_waiting(modules):
    importlib.import_module(LIBRARY)
    part = LatePart(PART, LIBRARY)
    part.install(config())
    assert calls() == [True]
    part.uninstall()


def test_a_part_that_a_setting_asks_for_is_imported_with_that_setting(modules):
    part = LatePart(PART, is_wanted=lambda config: not config.runtime)
    part.install(config())
    assert PART not in sys.modules
    part.install(config(RUNTIME=False))
    # Off again: the part itself sees to it.
    part.install(config())
    assert calls() == [False, True]


def test_a_part_that_is_off_waits_for_nothing(modules):
    part = LatePart(PART, LIBRARY)
    part.install(config())
    part.uninstall()
    importlib.import_module(LIBRARY)
    assert PART not in sys.modules
    part.install(config())
    assert calls() == [True]


def test_a_part_that_fails_leaves_the_import_of_the_library_alone(modules, tmp_path):
    (tmp_path / f"{PART}.py").write_text("raise ValueError('broken')")
    part = LatePart(PART, LIBRARY)
    part.install(config())
    assert importlib.import_module(LIBRARY).was_there is False
    assert guard.fault_counts() == {f"starting {PART}": 1}
    part.uninstall()


def test_a_part_may_import_what_it_is_waited_for_by(modules, tmp_path):
    (tmp_path / f"{PART}.py").write_text(f"import {LIBRARY}{SOURCE}")
    part = LatePart(PART, LIBRARY, is_wanted=lambda config: True)
    part.install(config())
    assert calls() == [True]
    part.uninstall()


def test_a_part_that_is_imported_first_is_installed_once_it_is_whole(modules, tmp_path):
    """Also where it imports its library, at whose import it would be imported itself."""
    (tmp_path / f"{PART}.py").write_text(f"import {LIBRARY}{SOURCE}")
    part = LatePart(PART, LIBRARY)
    part.install(config())
    importlib.import_module(PART)
    assert calls() == [True]
    assert guard.fault_counts() == {}
    part.uninstall()
