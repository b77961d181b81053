"""Regular expressions that mean the same on every Python."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import django_otel
from django_otel.base import patterns
from tests.redaction import corpus
from tests.redaction.fakes import Fakes

PACKAGE = Path(django_otel.__file__).parent
_GIVES_NOTHING_BACK = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")


@pytest.mark.parametrize(
    ("text", "subject", "matched"),
    [
        ("(?:ab?c)*+", "aca", "ac"),
        ("(?:ab?c)++", "acabca", "acabc"),
        ("(?:ab?c)?+", "aca", "ac"),
        ("(?:ab?c){1,3}+", "aca", "ac"),
        (r"(?:[a-z]{1,3}=[a-z]{1,9}&?)*+", "a=b&c=d&e", "a=b&c=d&"),
        (r"'(?:[^'\\]++|''|\\.)*+'", r"'it''s \' ' it's", r"'it''s \' '"),
    ],
)
def test_a_repeated_group_that_gives_nothing_back_matches_no_more_than_it_should(text, subject, matched):
    """Python before 3.11.5 goes on where the group has failed in its middle."""
    assert patterns.compile_pattern(text).match(subject)[0] == matched
    assert patterns.lazy_pattern(text).match(subject)[0] == matched
    assert re.compile(patterns.write_atomic(text)).match(subject)[0] == matched


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("(?:ab?c)*+d", "(?>(?:ab?c)*)d"),
        ("((?:a|b(c){2}+)++x)?+", "(?>((?>(?:a|b(?>(c){2}))+)x)?)"),
        (r"\((?P<x>[)(\]]+)\)+(?P=x)?+", r"\((?P<x>[)(\]]+)\)+(?>(?P=x)?)"),
        ("[^()]++[])]*+(?=a)+b", "[^()]++[])]*+(?=a)+b"),
        ("(?:a)*?(?:b)*(c{2}){1,}", "(?:a)*?(?:b)*(c{2}){1,}"),
    ],
)
def test_only_groups_are_written_otherwise(text, written):
    assert patterns.write_atomic(text) == written


def lazy_patterns():
    """All of the package, by the module's name."""
    found = {}
    for module in pkgutil.walk_packages([str(PACKAGE)], "django_otel."):
        if module.name.startswith(("django_otel.redaction", "django_otel.console.text", "django_otel.base")):
            for name, value in vars(importlib.import_module(module.name)).items():
                parts = value if isinstance(value, tuple | list) else [value]
                for index, part in enumerate(parts):
                    if type(part) is patterns._LazyPattern:
                        found[f"{module.name}.{name}.{index}"] = part
    return found


def test_written_otherwise_each_pattern_of_the_package_finds_the_same():
    """With the texts of redaction's corpus."""
    names = ("secrets.txt", "harmless.txt")
    entries = [*corpus.read_secrets(names[0], Fakes()), *corpus.read_harmless(names[1])]
    texts = [entry.text for entry in entries][::20]
    found = lazy_patterns()
    assert len(found) > 100
    for name, pattern in found.items():
        given, flags = pattern._arguments
        plain, atomic = patterns.compile_pattern(given, flags), re.compile(patterns.write_atomic(given), flags)
        assert (plain.groups, plain.groupindex) == (atomic.groups, atomic.groupindex), name
        for text in texts:
            assert [each.span() for each in plain.finditer(text)] == [each.span() for each in atomic.finditer(text)], (
                name
            )


def test_no_module_compiles_such_a_group_on_its_own():
    assert [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("re.")
        and _GIVES_NOTHING_BACK.search(ast.unparse(node))
    ] == []
