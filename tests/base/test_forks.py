"""What happens after a fork: one list, in one order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from django_otel.base import forks
from tests import services

PACKAGE = Path(forks.__file__).resolve().parents[1]


def test_one_module_listens_to_forks():
    found = [path.name for path in PACKAGE.rglob("*.py") if "register_at_fork" in path.read_text()]
    assert found == ["forks.py"]


def test_each_entry_is_explained_and_used():
    names = [name for name, _ in forks.ORDER]
    assert len(set(names)) == len(names)
    assert all(reason for _, reason in forks.ORDER)
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'forks\.register\(\s*"([\w.]+)"', text)) | {"base.guard"}
    assert used == set(names)


def test_a_name_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place in the order"):
        forks.register("nowhere", lambda: None)


SCRIPT = """
import os, sys
import django
from django.conf import settings
settings.configure(SECRET_KEY="s", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL={
    "SERVICE_NAME": "forks", "TRACES": {"EXPORTERS": ["memory"]}, "CONSOLE": {"ENABLED": False}})
from django_otel.base import forks
django.setup()
import django_otel.multiprocess.sharing, django_otel.tracestore.file
from opentelemetry import metrics
called = []
for name, _ in forks.ORDER:
    forks.register(name, lambda name=name: called.append(name))
forks.register("logs", lambda: 1 / 0)
# A provider of the SDK that is made later: what we do late comes after its hooks as well, and once.
metrics.get_meter_provider().get_meter("a").create_counter("b").add(1)
read, write = os.pipe()
if not os.fork():
    os.write(write, ",".join(called).encode())
    os._exit(0)
os.wait()
print(os.read(read, 10000).decode())
print(len(called))
forks.run_child_hooks()
print(",".join(called))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_order_is_kept_and_a_fault_stops_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], cwd=services.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    in_child, in_parent, without_hooks = done.stdout.splitlines()
    names = ",".join(name for name, _ in forks.ORDER)
    assert (in_child, in_parent, without_hooks) == (names, "0", names)
