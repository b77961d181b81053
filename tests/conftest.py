"""Fixtures of the whole suite; the parts they start stand in `tests.services`."""

import pytest

from tests import services


@pytest.fixture(scope="session")
def postgres():
    """The URL of a real PostgreSQL server."""
    with services.start_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def valkey_url():
    """The redis:// URL of a real Valkey server."""
    with services.start_valkey() as url:
        yield url


@pytest.fixture(scope="session")
def rotel():
    """A real, strict OTLP collector."""
    with services.start_rotel() as collector:
        yield collector


@pytest.fixture
def receiver():
    """An OTLP/HTTP receiver that keeps what it gets."""
    with services.start_receiver() as found:
        yield found
