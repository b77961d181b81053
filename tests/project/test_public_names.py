"""The public names: there, complete, and importable before anything else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import django_otel
from tests import sizes

ROOT = Path(__file__).resolve().parents[2]
#: The public Python API (docs/api.md).
SURFACE = {
    "span", "event", "set_attributes", "set_metric_attributes", "set_user", "counter", "histogram",
    "up_down_counter", "gauge",
    "observable_gauge", "timed", "current_trace_id", "trace_url", "untraced", "carrier", "from_carrier", "flush",
    "business", "force_trace_token", "sample",
}  # fmt: skip


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter without settings, warnings being errors."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_all_is_the_surface():
    assert set(django_otel.__all__) == SURFACE | {"__version__"}
    assert len(django_otel.__all__) == len(set(django_otel.__all__))


@sizes.each("name", sorted(SURFACE))
def test_every_name_is_there_and_documented(name):
    found = getattr(django_otel, name)
    assert found.__doc__
    assert name in dir(django_otel)


def test_a_star_import_brings_every_name():
    namespace: dict[str, object] = {}
    exec("from django_otel import *", namespace)
    assert set(namespace) >= SURFACE


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'spam'"):
        django_otel.spam  # noqa: B018
    with pytest.raises(ImportError):
        from django_otel import spam  # noqa: F401


def test_the_version_is_the_distributions():
    assert django_otel.__version__ == importlib.metadata.version("django-otel-kit")
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert "version" in tomllib.load(file)["project"]["dynamic"]


def test_everything_can_be_imported_and_used_before_settings():
    done = run(
        """
        from django_otel import *
        import django_otel

        with span("s", a=1) as current, timed("t", b=2):
            event("e")
            set_attributes(c=3)
            set_user(5)
            assert current_trace_id() is None and trace_url() is None
            assert not current.is_recording()
        with untraced, from_carrier(carrier()):
            pass

        @span("f")
        def f():
            return 1

        @untraced
        async def g():
            return 2

        import asyncio
        assert f() == 1 and asyncio.run(g()) == 2
        orders = counter("orders.total")
        orders.add(2)
        histogram("h").record(1); gauge("g").set(1); up_down_counter("u").add(1)
        observable_gauge("o", lambda: 1)
        assert flush(0.1) is True
        assert business.register

        from django.conf import settings
        assert not settings.configured
        settings.configure(INSTALLED_APPS=["django_otel"], SECRET_KEY="x", OTEL={"SERVICE_NAME": "late"})
        import django
        django.setup()
        from django_otel import runtime
        assert counter("orders.total") is orders
        (family,) = [family for family in runtime.collect() if family.name == "orders.total"]
        assert family.points[0].value == 2.0
        with span("now") as current:
            assert current.is_recording() and current_trace_id()
        """
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert not done.stdout


def test_a_settings_module_may_import_the_names(tmp_path):
    (tmp_path / "late_settings.py").write_text(
        "from django_otel import counter, observable_gauge, span\n"
        "counter('from.settings').add(1)\n"
        "with span('in settings'): pass\n"
        "SECRET_KEY = 'x'\nINSTALLED_APPS = ['django_otel']\n"
    )
    done = run(
        """
        import django
        django.setup()
        from django_otel import runtime
        assert "from.settings" in [family.name for family in runtime.collect()]
        """,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
        DJANGO_SETTINGS_MODULE="late_settings",
    )
    assert done.returncode == 0, done.stderr


def modules_after(code: str) -> set[str]:
    done = run(code + "\nimport json, sys; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_and_its_pytest_plugin_loads_next_to_nothing():
    loaded = modules_after("import django_otel, django_otel.testing")
    assert not {name for name in loaded if name.partition(".")[0] in {"django", "opentelemetry", "requests", "asgiref"}}


def test_importing_the_functions_loads_neither_django_nor_sdk_nor_exporters():
    loaded = modules_after("from django_otel import span, counter, timed, untraced, carrier")
    heavy = {"django", "requests", "google", "grpc", "wrapt", "asgiref", "asyncio"}
    assert not {name for name in loaded if name.partition(".")[0] in heavy}
    assert not {name for name in loaded if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))}


def test_the_plugin_is_registered_with_pytest():
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"]["pytest11"]
    assert declared == {"django_otel.testing": "django_otel.testing"}
    installed = importlib.metadata.entry_points(group="pytest11", name="django_otel.testing")
    assert [entry.value for entry in installed] in ([], ["django_otel.testing"])
