"""A record is what a frozen dataclass is, made quickly; a lazy pattern is what a compiled one is."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import ClassVar

import pytest

from django_otel.base.frozen import record
from django_otel.base.patterns import lazy_pattern


@record
class Quick:
    name: str
    size: int = 3
    tags: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False, repr=False)
    doubled: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")
        object.__setattr__(self, "doubled", self.size * 2)


@dataclass(frozen=True)
class Plain:
    name: str
    size: int = 3
    tags: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False, repr=False)
    doubled: int = field(init=False, compare=False)

    __post_init__ = Quick.__post_init__


@record
class Hashed:
    a: int
    b: str = "x"


@record
class Derived(Hashed):
    c: ClassVar[int] = 9
    d: float = 0.5


BOTH = pytest.mark.parametrize("kind", [Quick, Plain])


@BOTH
def test_values_come_by_place_and_name_and_default(kind):
    """Mutable defaults are made for each."""
    one, other = kind("a"), kind("a", 4, note="n")
    assert (one.name, one.size, one.tags, one.note, one.doubled) == ("a", 3, [], "", 6)
    assert (other.size, other.note, other.doubled) == (4, "n", 8)
    assert one.tags is not kind("a").tags


@BOTH
@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), (("a",), {"nam": 1}), (("a",), {"name": "b"}), (("a", 1, [], "", 5), {}), (("a",), {"doubled": 1})],
)
def test_values_that_do_not_fit_are_refused(kind, values, named):
    """Missing, unknown, given twice, too many, or not to be given."""
    with pytest.raises(TypeError):
        kind(*values, **named)


@BOTH
def test_nothing_can_be_changed(kind):
    """Neither a field nor a new name."""
    made = kind("a")
    for change in (
        lambda: setattr(made, "name", "b"),
        lambda: setattr(made, "other", 1),
        lambda: delattr(made, "name"),
    ):
        with pytest.raises(FrozenInstanceError):
            change()
    assert made.name == "a"


@BOTH
def test_equality_text_and_copies(kind):
    """By the compared fields of one class; `replace`, `fields`, copy and pickle as ever."""
    made = kind("a", note="one")
    assert made == kind("a", note="other")
    assert made != kind("b")
    assert made != ("a", 3, [], "one")
    assert repr(made) == f"{kind.__name__}(name='a', size=3, tags=[], doubled=6)"
    assert replace(made, size=5).doubled == 10
    assert [each.name for each in fields(made)] == ["name", "size", "tags", "note", "doubled"]
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert again.note == "one"
    with pytest.raises(TypeError):
        hash(made)
    with pytest.raises(ValueError, match="negative"):
        kind("a", -1)
    match made:
        case Quick(name, size) | Plain(name, size):
            assert (name, size) == ("a", 3)


def test_equal_records_hash_alike():
    assert len({Hashed(1), Hashed(1, "x"), Hashed(2)}) == 2


def test_a_lazy_pattern_is_the_pattern():
    """All that a compiled pattern has, before and after its first use."""
    lazy, plain = (
        lazy_pattern(r"(?P<word>[a-c]+)(\d)?", re.IGNORECASE),
        re.compile(r"(?P<word>[a-c]+)(\d)?", re.IGNORECASE),
    )
    for _ in range(2):
        assert lazy.sub("-", "xABC1b") == plain.sub("-", "xABC1b")
        assert lazy.search("xab", 2).span() == plain.search("xab", 2).span()
        assert [found.groups() for found in lazy.finditer("a1 b")] == [
            found.groups() for found in plain.finditer("a1 b")
        ]
        assert lazy.fullmatch("abc1")["word"] == "abc"
        assert lazy.split("1a2") == plain.split("1a2")
        assert (lazy.pattern, lazy.flags, lazy.groups, lazy.groupindex) == (
            plain.pattern, plain.flags, plain.groups, plain.groupindex,
        )  # fmt: skip


def test_every_lazy_pattern_of_the_package_can_be_compiled():
    """A mistake in one would come out at its first use only."""
    import importlib
    import pkgutil

    import django_otel
    from django_otel.base import patterns

    packages = ("redaction", "requests", "tracing")
    names = [
        module.name
        for package in packages
        for module in pkgutil.iter_modules([f"{django_otel.__path__[0]}/{package}"], f"django_otel.{package}.")
    ]
    found = [
        value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, patterns._LazyPattern)
    ]
    assert len(found) > 30
    for pattern in found:
        assert re.compile(*pattern._arguments).pattern == pattern._arguments[0]


def test_a_record_of_a_record_has_the_fields_of_both_and_no_class_variables():
    assert [entry.name for entry in fields(Derived)] == ["a", "b", "d"]
    made = Derived(1, d=2.0)
    assert (made.a, made.b, made.c, made.d) == (1, "x", 9, 2.0)
    assert replace(made, b="y") == Derived(1, "y", 2.0)
    assert [entry.name for entry in fields(Hashed)] == ["a", "b"]


def test_the_fields_of_a_record_say_what_those_of_a_dataclass_say():
    def said(kind):
        return [
            (entry.name, entry.type, entry.default, entry.init, entry.repr, entry.compare, entry.kw_only)
            for entry in fields(kind)
        ]

    assert said(Quick) == said(Plain)
    assert Quick.size == Plain.size == 3
    assert not hasattr(Quick, "tags")
