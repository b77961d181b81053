"""Turns the addresses in `DATABASE_URL` and `REDIS_URL` into Django settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def parse_database_url(url: str) -> dict[str, Any]:
    """`postgresql://user:password@host:port/name?host=/socket/folder` or `sqlite:////path/to/file` as a database.

    Query parameters other than `host` and `port` become connection options.

    Errors: `ImproperlyConfigured` for another scheme or a missing name. The
    address itself is not repeated, because it may hold a password.
    """
    parts = urlsplit(url)
    name = unquote(parts.path[1:])
    if parts.scheme == "sqlite":
        return sqlite(Path(name)) if name else sqlite(Path(":memory:"))
    if parts.scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured(
            f"DATABASE_URL begins with {parts.scheme!r}; expected postgresql://user:password@host:port/name "
            "or sqlite:////path/to/file."
        )
    if not name:
        raise ImproperlyConfigured(
            "DATABASE_URL names no database; expected postgresql://user:password@host:port/name."
        )
    options = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        # The query's host wins, as in libpq: that is how a folder with a unix socket is named.
        "HOST": options.pop("host", unquote(parts.hostname or "")),
        "PORT": options.pop("port", str(parts.port or "")),
        "OPTIONS": options,
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


def sqlite(path: Path) -> dict[str, Any]:
    """A SQLite database that several worker processes may write to."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {
            # A transaction that begins by reading cannot wait for a writer later on; one that begins as a writer can.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }


def parse_redis_url(url: str) -> dict[str, Any]:
    """`redis://host:port/number`, `rediss://` or `unix://path` as a cache shared by all worker processes.

    Errors: `ImproperlyConfigured` for another scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme not in ("redis", "rediss", "unix"):
        raise ImproperlyConfigured(f"REDIS_URL begins with {scheme!r}; expected redis://host:port/number.")
    return {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": url,
        "KEY_PREFIX": "shop",
        # The product list is worth a tenth of a second of waiting, not a failed page.
        "OPTIONS": {"IGNORE_EXCEPTIONS": True, "SOCKET_CONNECT_TIMEOUT": 1, "SOCKET_TIMEOUT": 1},
    }
