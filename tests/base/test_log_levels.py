"""Levels that hold for a time: set, ended, set back."""

from __future__ import annotations

import logging
import os

import pytest

from django_otel.base.log_levels import MAX_LEVELS, LiveLevel, LiveLevels, level_names, logger_name

NOW_S = 1_000_000.0


@pytest.fixture
def live():
    levels = LiveLevels()
    yield levels
    levels.restore_all()


@pytest.fixture
def logger(request):
    found = logging.getLogger(f"tests.live.{request.node.name}")
    yield found
    found.setLevel(logging.NOTSET)


def until(name: str, level: str, lasts_s: float = 60.0) -> LiveLevel:
    return LiveLevel(name, level, NOW_S + lasts_s)


@pytest.mark.parametrize("before", [logging.NOTSET, 7, logging.WARNING, logging.DEBUG])
def test_a_level_ends_as_it_began(live, logger, before):
    logger.setLevel(before)
    live.apply([until(logger.name, "DEBUG")], NOW_S)
    assert logger.level == logging.DEBUG
    live.apply([until(logger.name, "ERROR")], NOW_S)
    assert logger.level == logging.ERROR
    live.apply([until(logger.name, "ERROR")], NOW_S + 60)
    assert logger.level == before
    live.apply([until(logger.name, "ERROR")], NOW_S + 61)
    assert logger.level == before


def test_root_logger_and_child_without_a_level(live):
    before = logging.root.level
    child = logging.getLogger("tests.live.child.of.root")
    live.apply([until("root", "DEBUG")], NOW_S)
    assert logging.root.level == logging.DEBUG and child.isEnabledFor(logging.DEBUG)
    live.apply([], NOW_S)
    assert logging.root.level == before and not child.isEnabledFor(logging.DEBUG)


def test_what_the_application_sets_meanwhile_stays(live, logger):
    """`dictConfig` while a level holds: the level holds on, and what is set back is what the application set."""
    logger.setLevel(logging.ERROR)
    live.apply([until(logger.name, "DEBUG")], NOW_S)
    logger.setLevel(logging.WARNING)
    live.apply([until(logger.name, "DEBUG")], NOW_S)
    assert logger.level == logging.DEBUG
    live.apply([], NOW_S)
    assert logger.level == logging.WARNING

    live.apply([until(logger.name, "DEBUG")], NOW_S)
    logger.setLevel(logging.INFO)
    live.apply([], NOW_S)
    assert logger.level == logging.INFO


def test_unknown_levels_are_named_and_the_list_is_bounded(live):
    names = [f"tests.live.many.{number}" for number in range(MAX_LEVELS + 5)]
    unknown = live.apply([until("tests.live.odd", "LOUD"), *(until(name, "DEBUG") for name in names)], NOW_S)
    assert unknown == ["LOUD"]
    assert sum(logging.getLogger(name).level == logging.DEBUG for name in names) == MAX_LEVELS


def test_export_level(live):
    assert live.export_level("tests.live.x", logging.INFO) == logging.INFO
    live.apply([until("tests.live", "DEBUG"), until("tests.live.loud", "ERROR")], NOW_S)
    assert live.export_level("tests.live.x.y", logging.INFO) == logging.DEBUG
    assert live.export_level("tests.live.loud", logging.INFO) == logging.INFO
    assert live.export_level("tests.liver", logging.INFO) == logging.INFO
    live.apply([until("root", "DEBUG")], NOW_S)
    assert live.export_level("anything", logging.INFO) == logging.DEBUG


def test_names():
    assert level_names()[-1] == "DEBUG" and "NOTSET" not in level_names() and "WARN" not in level_names()
    assert logger_name("  ") == logger_name("root") == logging.root.name
    assert logger_name(" shop.pay ") == "shop.pay"
    for bad in ("a\x1bb", "a\nb", "x" * 201, "\u202eshop"):
        with pytest.raises(ValueError):
            logger_name(bad)


def test_a_forked_child_begins_without_them(logger):
    from django_otel.base.log_levels import levels

    levels.apply([until(logger.name, "DEBUG")], NOW_S)
    try:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write_end, str(logger.level).encode())
            os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        with os.fdopen(read_end) as pipe:
            assert pipe.read() == str(logging.NOTSET)
        assert logger.level == logging.DEBUG
    finally:
        levels.restore_all()
