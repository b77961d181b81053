"""Fixtures of the tests of live sampling."""

from __future__ import annotations

import pytest

from django_otel import runtime
from django_otel.live_sampling import follower


def _forget() -> None:
    follower._followers.clear()
    runtime.current().sampler.swap(None)


@pytest.fixture
def fresh_policy():
    """Each test begins and ends with the settings' policy and a process that has applied nothing."""
    _forget()
    yield
    _forget()
